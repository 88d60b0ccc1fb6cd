"""The TopK sparse autoencoder of the experiment: the notebook's door to the package `thought_saes`.

    from topk_sae import TopKSAE

    sae = TopKSAE.load("results/pos3_layer14_d512_k20.pt")
    latents = sae.encode(x)          # (n, latent_dim), at most k of each row not zero
    x_hat = sae.decode(latents)      # (n, input_dim), the same as sae(x)

        z     = AbsTopK_k(W_enc x + b_enc)
        x_hat = W_dec z + b_dec

AbsTopK (arXiv 2510.00404) keeps the k latents of largest magnitude of a row, with their signs, and zeroes the rest.
"""

from thought_saes.saes.checkpoint import load_sae
from thought_saes.saes.sae import SparseAutoencoder, TopKSAE

__all__ = ["SparseAutoencoder", "TopKSAE", "load_sae"]
