"""The split into training and validation rows."""

from thought_saes.activations.split import split_rows


def test_the_split_is_that_of_scikit_learn() -> None:
    # train_test_split(range(10), train_size=0.8, random_state=42) of scikit-learn 1.5
    split = split_rows(10)
    assert split.validation.tolist() == [8, 1]
    assert split.train.tolist() == [5, 0, 7, 2, 9, 4, 3, 6]
    sizes = split_rows(7473)
    assert (len(sizes.train), len(sizes.validation)) == (5978, 1495)
