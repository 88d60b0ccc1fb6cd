"""Compiled inner loops of the fused trainer: explicit vectors, so that sums stay in registers.

A compiler turns `out[i] += c * row[i]` into a load and a store of `out` for every multiply-add. The loops
here hold a piece of `out` in vector registers while they go through all rows that are added to it. Numba has
no vector values, so `Lanes(n)`, n float32 side by side, is added to its types: LLVM splits it into whatever
registers the processor has. Everything is compiled once per machine and cached on disk; the cache does not notice
a change in another file, so all kernels, and the tuples they take, stand in this one.

Every kernel takes what it reads, the features' states, what it writes, scalars, and last the range [first, last) of
rows or columns that is its thread's.
"""

# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"
from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import extending, njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

F32 = np.float32
FLAGS = ("reassoc", "contract", "nsz")  # sums may be reordered and fused; NaN and infinity keep their meaning
LINE = 16  # float32 in a cache line, and lanes of an AVX-512 register
# Lanes of a sum held in registers: 16 of the 32 registers of AVX-512, 8 of the 16 of AVX2.
WIDE = 256 if binding.get_host_cpu_features().get("avx512f") else 64
NARROW = WIDE // 4
BLOCK = 256

# Typed Any: a checker does not see what compiled functions take and return.
compiled: Any = njit(cache=True, nogil=True, fastmath=set(FLAGS), error_model="numpy")
intrinsic: Any = extending.intrinsic


class Lanes(types.Type):
    """n float32 values held in vector registers."""

    def __init__(self, n: int) -> None:
        super().__init__(name=f"Lanes({n})")
        self.n = n


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, ir.VectorType(ir.FloatType(), lanes.n))


def _define_operator(symbol: Any, instruction: str) -> None:
    @infer_global(symbol)
    class _Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Lanes) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(symbol, Lanes, Lanes)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args, flags=FLAGS)


for _symbol, _instruction in {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}.items():
    _define_operator(_symbol, _instruction)


def _address(context: Any, builder: Any, sig: Any, args: Any, vector: Any) -> Any:
    """Pointer to a vector at element `args[1]` of the flat array `args[0]`."""
    data = make_array(sig.args[0])(context, builder, args[0]).data
    return builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer())


@intrinsic
def load(typing_context, array, index, lanes):
    """`lanes` consecutive values of a flat array from `index`, which is not checked."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    result = Lanes(lanes.literal_value)

    def lower(context, builder, sig, args):
        vector = ir.VectorType(ir.FloatType(), result.n)
        value = builder.load(_address(context, builder, sig, args, vector))
        value.align = 4  # bytes: a row piece may start anywhere
        return value

    return result(array, types.int64, lanes), lower


@intrinsic
def store(typing_context, array, index, value):
    """Write all lanes of `value` into a flat array from `index` on, which is not checked."""

    def lower(context, builder, sig, args):
        builder.store(args[2], _address(context, builder, sig, args, args[2].type)).align = 4
        return context.get_dummy_value()

    return types.void(array, types.int64, value), lower


@intrinsic
def spread(typing_context, scalar, lanes):
    """`scalar` in every lane."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    n = lanes.literal_value

    def lower(context, builder, sig, args):
        nothing = ir.Constant(ir.VectorType(ir.FloatType(), n), ir.Undefined)
        first = builder.insert_element(nothing, args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), n), [0] * n))

    return Lanes(n)(types.float32, lanes), lower


def _llvm_call(builder: Any, name: str, result: Any, args: Any, **flags: Any) -> Any:
    function_type = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args, **flags)


@intrinsic
def root(typing_context, value):
    """Square root of every lane."""

    def lower(context, builder, sig, args):
        return _llvm_call(builder, f"llvm.sqrt.v{value.n}f32", args[0].type, args)

    return value(value), lower


@intrinsic
def total(typing_context, value):
    """Sum of all lanes."""

    def lower(context, builder, sig, args):
        zero = ir.Constant(ir.FloatType(), 0.0)
        name = f"llvm.vector.reduce.fadd.v{value.n}f32"
        return _llvm_call(builder, name, ir.FloatType(), [zero, args[0]], fastmath=FLAGS)

    return types.float32(value), lower


def _piece_kernels(lanes: int) -> Any:
    """The two sums over sparse entries, for a piece of `lanes` columns from `start` on."""

    @compiled
    def add_rows(value, coefs, rows, matrix, stride, start, first, last):
        """value + the sum over e in [first, last) of coefs[e] * matrix[rows[e], start : start + lanes]."""
        for e in range(first, last):
            value = value + spread(coefs[e], lanes) * load(matrix, rows[e] * stride + start, lanes)
        return value

    @compiled
    def add_rows_and_dot(dots, weights, at, coefs, rows, matrix, stride, start, first, last):
        """`add_rows` from zero, and dots[e] += weights[at : at + lanes] . the same piece, read only once."""
        weight = load(weights, at, lanes)
        value = spread(F32(0), lanes)
        for e in range(first, last):
            piece = load(matrix, rows[e] * stride + start, lanes)
            dots[e] += total(weight * piece)
            value = value + spread(coefs[e], lanes) * piece
        return value

    return add_rows, add_rows_and_dot


_add_wide, _ = _piece_kernels(WIDE)
_, _both_half = _piece_kernels(WIDE // 2)  # two sums share the registers
_add_narrow, _both_narrow = _piece_kernels(NARROW)
_add_line, _both_line = _piece_kernels(LINE)


FIRST_STEP = 1 << 20  # in the bits of a float, an eighth of an octave: how far a row's k-th may be from the last row's
LEADING = 1 << 15  # values of the upper half of a non-negative float
TINY = np.finfo(np.float32).tiny  # the least that a pre-activation of a ReLU'd rule has to reach


class Weights(NamedTuple):
    """Weights and Adam's moments; flat for the kernels, (features, stride) for what exchanges rows."""

    w: NDArray[np.float32]
    m: NDArray[np.float32]
    v: NDArray[np.float32]

    def flat(self) -> Weights:
        return Weights(*(array.reshape(-1) for array in self))


class Factors(NamedTuple):
    """Of one Adam step, all float32."""

    beta1: np.float32
    beta2: np.float32
    size: np.float32  # lr / (1 - beta1^t)
    root_scale: np.float32  # 1 / sqrt(1 - beta2^t)
    eps: np.float32


class Steps(NamedTuple):
    """`AdamSteps` up to the present one, and what replaying missed ones needs."""

    now: int  # the last step taken
    sizes: NDArray[np.float64]
    root_scales: NDArray[np.float64]
    beta1: float
    beta2: float
    eps: np.float32
    limit: int  # missed steps after which only the moments go on


class Features(NamedTuple):
    """The features' states by position: [0, n_dense) dense, [n_dense, n_live) sparse, then the frozen ones."""

    ids: NDArray[np.int64]  # which feature is at each position
    place: NDArray[np.int64]  # the position of each feature
    slack: NDArray[np.float32]  # how far the pre-activation can still move, per unit of |x|; infinite if not known
    levels: NDArray[np.int64]  # the first of the nested prefixes that holds it, 0 where nothing is nested
    n_dense: int
    n_live: int


class Entries(NamedTuple):
    """What each row of a batch selects, in compressed rows of live positions.

    Row r's are [starts[r], ends[r]); those before sparse[r] are dense features.
    """

    positions: NDArray[np.int64]
    acts: NDArray[np.float32]
    starts: NDArray[np.int64]
    sparse: NDArray[np.int64]
    ends: NDArray[np.int64]


class Candidates(NamedTuple):
    """What may be selected on each row, in a rule by which rows compete."""

    positions: NDArray[np.int32]  # (rows, latent_dim), of which row r has the first counts[r]
    counts: NDArray[np.int64]  # (rows,)


class ByFeature(NamedTuple):
    """The entries of sparse features, sorted: those at position p are [offsets[p], offsets[p + 1])."""

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    acts: NDArray[np.float32]


class Lists(NamedTuple):
    """For every training row the frozen and watched features that can reach farthest there, and how far others can."""

    reaches: NDArray[np.float32]  # (n, listed)
    features: NDArray[np.int32]  # (n, listed) ids, -1 for none
    rest: NDArray[np.float32]  # (n,)
    norms: NDArray[np.float32]  # (n,) of the row with the bias's constant


@compiled
def adam(arrays, at, gradient, n, factors):
    """One torch.optim.Adam step of weights [at, at + n); gradient from 0; n a multiple of LINE."""
    w, m, v = arrays
    b1, c1 = spread(factors.beta1, LINE), spread(F32(1) - factors.beta1, LINE)
    b2, c2 = spread(factors.beta2, LINE), spread(F32(1) - factors.beta2, LINE)
    size, correction = spread(factors.size, LINE), spread(factors.root_scale, LINE)
    small = spread(factors.eps, LINE)
    for i in range(0, n, LINE):
        g = load(gradient, i, LINE)
        m_i = b1 * load(m, at + i, LINE) + c1 * g
        v_i = b2 * load(v, at + i, LINE) + c2 * g * g
        store(m, at + i, m_i)
        store(v, at + i, v_i)
        store(w, at + i, load(w, at + i, LINE) - size * m_i / (root(v_i) * correction + small))


@compiled
def replay(positions, since, arrays, steps, stride, first, last):
    """The Adam steps without gradient that the features at positions[first:last] missed, up to steps.now.

    since: the last step each has seen.
    """
    small = spread(steps.eps, LINE)
    w, m, v = arrays
    for n in range(first, last):
        at, seen = positions[n] * stride, since[positions[n]]
        missed = steps.now - seen
        replayed = min(missed, steps.limit)
        m_factors, v_factors = np.empty(replayed, np.float32), np.empty(replayed, np.float32)
        for i in range(replayed):
            m_factors[i] = steps.sizes[seen + 1 + i] * steps.beta1 ** (i + 1)
            v_factors[i] = steps.root_scales[seen + 1 + i] * steps.beta2 ** (0.5 * (i + 1))
        m_decay, v_decay = F32(steps.beta1**missed), F32(steps.beta2**missed)
        for i in range(at, at + stride, LINE):
            w_i, m_i, v_i = load(w, i, LINE), load(m, i, LINE), load(v, i, LINE)
            root_i = root(v_i)
            for j in range(replayed):
                move = spread(m_factors[j], LINE) * m_i / (spread(v_factors[j], LINE) * root_i + small)
                w_i = w_i - move
            store(w, i, w_i)
            store(m, i, spread(m_decay, LINE) * m_i)
            store(v, i, spread(v_decay, LINE) * v_i)
        since[positions[n]] = steps.now


@compiled
def _key(bits, signed):
    """What a pre-activation is ranked by, from its bits: |p| or ReLU(p), in order. NaN is above all numbers."""
    magnitude = bits & np.int32(0x7FFFFFFF)
    if signed or magnitude > np.int32(0x7F800000):
        return magnitude
    return max(bits, np.int32(0))


@compiled
def _count(bits, threshold):
    """How many of bits (n,) int32 are threshold or more."""
    count = np.int32(0)
    for j in range(bits.size):
        count = np.int32(count + np.int32(bits[j] >= threshold))  # 64 bits wide, a vector would hold half as many
    return np.int64(count)


@compiled
def select(pre_acts, features, entries, kth, k, signed, rows):
    """Of each of `rows`, the k largest |pre_acts|; or, not `signed`, the k largest that are positive.

    Ties at the k-th go to the lowest id. kth (rows,): what a pre-activation had to reach. NaN counts as larger than
    any number.
    """
    n_live, ids = features.n_live, features.ids
    bits = np.empty(n_live, np.int32)
    guess = np.int64(0)
    for row in rows:
        values = pre_acts[row, :n_live].view(np.int32)
        largest = np.int32(0)
        for j in range(n_live):  # non-negative floats are in the order of their bits
            bits[j] = _key(values[j], signed)
            largest = max(largest, bits[j])
        # `low` is reached by at least k entries (by `found`), `high` by fewer: from what the row before needed in steps
        # that double, then by bisection.
        low, high, found = np.int64(0), np.int64(largest) + 1, n_live
        if not signed:
            low, found = np.int64(1), _count(bits, np.int32(1))
            if found < k:
                high = low
        step = FIRST_STEP
        while found != k and high - low > 1:
            middle = guess if low < guess < high else (low + high) // 2
            count = _count(bits, np.int32(middle))
            if count >= k:
                low, found, guess = middle, count, middle + step
            else:
                high, guess = middle, middle - step
            step *= 2
        threshold, guess = np.int32(low), low
        if found > k:  # more than k reach it and none can be told apart: leave out the highest ids
            surplus = found - k
            while surplus:
                out = -1
                for j in range(n_live):
                    if bits[j] == threshold and (out < 0 or ids[j] > ids[out]):
                        out = j
                bits[out] = -1
                surplus -= 1
        n = entries.starts[row] = row * k
        smallest = largest
        for j in range(n_live):
            if bits[j] >= threshold:
                entries.positions[n] = j
                entries.acts[n] = pre_acts[row, j]
                smallest = min(smallest, bits[j])
                n += 1
        entries.ends[row] = n
        bits[0] = smallest
        kth[row] = bits[:1].view(np.float32)[0]
        if not signed and (found < k or kth[row] < TINY):
            kth[row] = TINY


@compiled
def collect(pre_acts, features, candidates, floor, first, last):
    """For rows [first, last), the positions of the positive pre-activations whose key is `floor` or more, ascending."""
    positions, counts = candidates
    chunk = 32  # so few reach the floor that most chunks are done with one comparison of vectors
    for row in range(first, last):
        values = pre_acts[row, : features.n_live].view(np.int32)
        n = 0
        for start in range(0, features.n_live, chunk):
            largest = np.int32(0)
            if start + chunk <= features.n_live:
                for j in range(start, start + chunk):
                    largest = max(largest, _key(values[j], False))
                if largest < floor:
                    continue
            for j in range(start, min(start + chunk, features.n_live)):
                positions[row, n] = j  # is overwritten if it is none
                n += _key(values[j], False) >= floor
        counts[row] = n


@compiled
def threshold_of_batch(pre_acts, features, candidates, entries, n_rows, n_kept):
    """What the n_kept largest candidates of a batch reach, and the last of those that just do.

    Returns their key, and the row and the id up to which equal ones are kept: of those the lowest rows are, and of a
    row the lowest ids. With fewer candidates all are kept, and the key is 1. Fills entries.starts and ends.
    """
    positions, counts = candidates
    histogram = np.zeros(LEADING, np.int32)  # of the upper halves of the keys
    for row in range(n_rows):
        values = pre_acts[row].view(np.int32)
        for i in range(counts[row]):
            histogram[_key(values[positions[row, i]], False) >> 16] += 1
    above, leading = 0, LEADING - 1
    while leading >= 0 and above + histogram[leading] < n_kept:
        above += histogram[leading]
        leading -= 1
    threshold, tie_row, tie_id = np.int32(1), n_rows, np.int64(0)
    if leading >= 0:
        keys, rows = np.empty(histogram[leading], np.int32), np.empty(histogram[leading], np.int32)
        ids = np.empty(histogram[leading], np.int64)
        n = 0
        for row in range(n_rows):
            values = pre_acts[row].view(np.int32)
            for i in range(counts[row]):
                key = _key(values[positions[row, i]], False)
                if key >> 16 == leading:
                    keys[n], rows[n], ids[n] = key, row, features.ids[positions[row, i]]
                    n += 1
        threshold = np.sort(keys)[n - (n_kept - above)]
        ties = np.flatnonzero(keys == threshold)
        left = n_kept - above - np.count_nonzero(keys > threshold)  # of the ties that are kept, at least one
        tie_row = rows[ties[left - 1]]  # they are in the order of rows
        tie_id = np.sort(ids[ties[rows[ties] == tie_row]])[left - 1 - np.count_nonzero(rows[ties] < tie_row)]
    start = 0
    for row in range(n_rows):
        values = pre_acts[row].view(np.int32)
        entries.starts[row] = start
        for i in range(counts[row]):
            f = positions[row, i]
            start += _is_kept(_key(values[f], False), row, features.ids[f], threshold, tie_row, tie_id)
        entries.ends[row] = start
    return threshold, tie_row, tie_id


@compiled
def _is_kept(key, row, feature, threshold, tie_row, tie_id):
    """Whether an entry is selected, from what `threshold_of_batch` returns."""
    return key > threshold or (key == threshold and (row < tie_row or (row == tie_row and feature <= tie_id)))


@compiled
def fill(pre_acts, features, candidates, entries, kth, threshold, tie_row, tie_id, first, last):
    """The entries and kth of rows [first, last) from what `threshold_of_batch` returns."""
    positions, counts = candidates
    bits = np.empty(1, np.int32)
    bits[0] = threshold
    reach = bits.view(np.float32)[0]
    if reach < TINY:  # and not NaN, which nothing reaches
        reach = TINY
    for row in range(first, last):
        values = pre_acts[row].view(np.int32)
        n = entries.starts[row]
        for i in range(counts[row]):
            f = positions[row, i]
            if _is_kept(_key(values[f], False), row, features.ids[f], threshold, tie_row, tie_id):
                entries.positions[n] = f
                entries.acts[n] = pre_acts[row, f]
                n += 1
        kth[row] = reach


@compiled
def scatter(features, entries, out, rows):
    """Of each of `rows`: out[row, f] = act of feature f < n_dense, or zero; entries.sparse from entries that ascend."""
    for row in rows:
        out[row, : features.n_dense] = 0
        n = entries.starts[row]
        while n < entries.ends[row] and entries.positions[n] < features.n_dense:
            out[row, entries.positions[n]] = entries.acts[n]
            n += 1
        entries.sparse[row] = n


@compiled
def zero_unselected(features, entries, gradients, first, last):
    """gradients[row, f] = 0 wherever feature f < n_dense is not selected."""
    for row in range(first, last):
        f = 0
        for n in range(entries.starts[row], entries.sparse[row]):
            gradients[row, f : entries.positions[n]] = 0
            f = entries.positions[n] + 1
        gradients[row, f : features.n_dense] = 0


@compiled
def reconstruct(batch, W_dec, b_dec, entries, residual, squares, scale, stride, first, last):
    """Of rows [first, last): residual = scale * (reconstruction - batch), squares (rows,) its norm² unscaled.

    On entry residual holds what the row's dense features add to the reconstruction. Column pieces are the outer loop,
    so that one piece of all decoder rows stays in the L2 cache.
    """
    positions, acts = entries.positions, entries.acts
    squares[first:last] = 0
    start = 0
    while start < stride:
        left = stride - start
        for row in range(first, last):
            at, e0, e1 = row * stride + start, entries.sparse[row], entries.ends[row]
            if left >= WIDE:
                wide = load(residual, at, WIDE) + load(b_dec, start, WIDE) - load(batch, at, WIDE)
                wide = _add_wide(wide, acts, positions, W_dec, stride, start, e0, e1)
                squares[row] += total(wide * wide)
                store(residual, at, spread(scale, WIDE) * wide)
            elif left >= NARROW:
                narrow = load(residual, at, NARROW) + load(b_dec, start, NARROW) - load(batch, at, NARROW)
                narrow = _add_narrow(narrow, acts, positions, W_dec, stride, start, e0, e1)
                squares[row] += total(narrow * narrow)
                store(residual, at, spread(scale, NARROW) * narrow)
            else:
                line = load(residual, at, LINE) + load(b_dec, start, LINE) - load(batch, at, LINE)
                line = _add_line(line, acts, positions, W_dec, stride, start, e0, e1)
                squares[row] += total(line * line)
                store(residual, at, spread(scale, LINE) * line)
        start += WIDE if left >= WIDE else (NARROW if left >= NARROW else LINE)


@compiled
def sort_by_level(features, entries, level_ends, first, last):
    """Bring the entries of rows [first, last) in the order of their levels; level_ends (rows, levels)."""
    n_levels = level_ends.shape[1]
    for row in range(first, last):
        e0, e1 = entries.starts[row], entries.ends[row]
        positions, acts = entries.positions[e0:e1].copy(), entries.acts[e0:e1].copy()
        n = e0
        for level in range(n_levels):
            for i in range(e1 - e0):
                if features.levels[positions[i]] == level:
                    entries.positions[n], entries.acts[n] = positions[i], acts[i]
                    n += 1
            level_ends[row, level] = n


@compiled
def reconstruct_nested(batch, W_dec, b_dec, entries, level_ends, residual, squares, scale, stride, level, first, last):
    """`reconstruct` by each nested prefix of the features, of rows [first, last), added from level's last to first.

    residual, flat (levels, rows, stride) with `level` values each: at g the sum of scale * (reconstruction - batch) of
    prefix g and all that hold it: d loss / d reconstruction by the features of level g. squares: the mean over the
    prefixes. Entries are sorted by level.
    """
    n_levels = level_ends.shape[1]
    squares[first:last] = 0
    start = 0
    while start < stride:
        left = stride - start
        for row in range(first, last):
            at, e0 = row * stride + start, entries.starts[row]
            if left >= NARROW:
                narrow = load(b_dec, start, NARROW) - load(batch, at, NARROW)
                for g in range(n_levels):
                    narrow = _add_narrow(
                        narrow, entries.acts, entries.positions, W_dec, stride, start, e0, level_ends[row, g]
                    )
                    e0 = level_ends[row, g]
                    squares[row] += total(narrow * narrow) / F32(n_levels)
                    store(residual, g * level + at, spread(scale, NARROW) * narrow)
                for g in range(n_levels - 2, -1, -1):
                    narrow = load(residual, g * level + at, NARROW) + load(residual, (g + 1) * level + at, NARROW)
                    store(residual, g * level + at, narrow)
            else:
                line = load(b_dec, start, LINE) - load(batch, at, LINE)
                for g in range(n_levels):
                    line = _add_line(
                        line, entries.acts, entries.positions, W_dec, stride, start, e0, level_ends[row, g]
                    )
                    e0 = level_ends[row, g]
                    squares[row] += total(line * line) / F32(n_levels)
                    store(residual, g * level + at, spread(scale, LINE) * line)
                for g in range(n_levels - 2, -1, -1):
                    line = load(residual, g * level + at, LINE) + load(residual, (g + 1) * level + at, LINE)
                    store(residual, g * level + at, line)
        start += NARROW if left >= NARROW else LINE


@compiled
def sort_by_feature(features, entries, by_feature, n_rows):
    """Counting sort of the entries of sparse features."""
    offsets, n_live = by_feature.offsets, features.n_live
    offsets[: n_live + 1] = 0
    for row in range(n_rows):
        for e in range(entries.sparse[row], entries.ends[row]):
            offsets[entries.positions[e] + 1] += 1
    for f in range(n_live):
        offsets[f + 1] += offsets[f]
    for row in range(n_rows):
        for e in range(entries.sparse[row], entries.ends[row]):
            f = entries.positions[e]
            by_feature.rows[offsets[f]] = row
            by_feature.acts[offsets[f]] = entries.acts[e]
            offsets[f] += 1
    for f in range(n_live, 0, -1):
        offsets[f] = offsets[f - 1]
    offsets[0] = 0


@compiled
def update_decoder(residual, features, firing, by_feature, grads, dec, factors, stride, level, first, last):
    """Gradient and Adam step of columns [first, last) of the decoder rows at the positions `firing`; dec is flat.

    grads (entries,) becomes these columns' part of d loss / d act of every entry. The decoder row of a feature that
    did not fire is left behind: see `replay`. residual: flat, `level` values for each level. Column blocks are the
    outer loop, so that one block of all residuals stays in the L2 cache.
    """
    offsets, rows, acts = by_feature
    gradient = np.empty(BLOCK, np.float32)
    grads[:] = 0
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        for f in firing:
            e0, e1, base, shift = offsets[f], offsets[f + 1], f * stride, features.levels[f] * level
            i = start
            while i + WIDE // 2 <= stop:
                half = _both_half(grads, dec.w, base + i, acts, rows, residual, stride, shift + i, e0, e1)
                store(gradient, i - start, half)
                i += WIDE // 2
            while i + NARROW <= stop:
                narrow = _both_narrow(grads, dec.w, base + i, acts, rows, residual, stride, shift + i, e0, e1)
                store(gradient, i - start, narrow)
                i += NARROW
            while i < stop:
                line = _both_line(grads, dec.w, base + i, acts, rows, residual, stride, shift + i, e0, e1)
                store(gradient, i - start, line)
                i += LINE
            adam(dec, base + start, gradient, stop - start, factors)


@compiled
def update_encoder(batch, firing, by_feature, grads, enc, factors, stride, first, last):
    """Gradient and Adam step of columns [first, last) of the encoder rows at the positions `firing`; enc is flat.

    grads (entries,), d loss / d act, are the coefficients of the gradient.
    """
    offsets, rows, _ = by_feature
    gradient = np.empty(BLOCK, np.float32)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        for f in firing:
            e0, e1 = offsets[f], offsets[f + 1]
            i = start
            while i + WIDE <= stop:
                wide = _add_wide(spread(F32(0), WIDE), grads, rows, batch, stride, i, e0, e1)
                store(gradient, i - start, wide)
                i += WIDE
            while i + NARROW <= stop:
                narrow = _add_narrow(spread(F32(0), NARROW), grads, rows, batch, stride, i, e0, e1)
                store(gradient, i - start, narrow)
                i += NARROW
            while i < stop:
                line = _add_line(spread(F32(0), LINE), grads, rows, batch, stride, i, e0, e1)
                store(gradient, i - start, line)
                i += LINE
            adam(enc, f * stride + start, gradient, stop - start, factors)


@compiled
def update_dense(gradients, arrays, factors, stride, position, first, last):
    """Adam step of columns [first, last) of the features from `position` on; gradients (features, last - first)."""
    for n in range(len(gradients)):
        adam(arrays, (position + n) * stride + first, gradients[n], last - first, factors)


@compiled
def update_idle(idle, arrays, factors, stride, first, last):
    """Adam step without gradient of columns [first, last) of the features at the positions `idle`."""
    nothing = np.zeros(last - first, np.float32)
    for f in idle:
        adam(arrays, f * stride + first, nothing, last - first, factors)


@compiled
def update_bias(residual, bias, factors, n_rows, stride, first, last):
    """Gradient and Adam step of columns [first, last) of the decoder bias."""
    gradient = np.empty(last - first, np.float32)
    for i in range(first, last, LINE):
        value = spread(F32(0), LINE)
        for row in range(n_rows):
            value = value + load(residual, row * stride + i, LINE)
        store(gradient, i - first, value)
    adam(bias, first, gradient, last - first, factors)


@compiled
def swap(arrays, a, b):
    """Exchange rows a and b of every array."""
    for array in arrays:
        for i in range(array.shape[1]):
            array[a, i], array[b, i] = array[b, i], array[a, i]


@compiled
def speeds_and_sizes(enc, positions, eps):
    """|m / (sqrt(v) + eps)| and |w|, norms of encoder rows, for each of the positions."""
    w, m, v = enc
    speeds, sizes = np.empty(positions.size, np.float32), np.empty(positions.size, np.float32)
    for n in range(positions.size):
        f = positions[n]
        moves = size = F32(0)
        for i in range(w.shape[1]):
            ratio = m[f, i] / (np.sqrt(v[f, i]) + eps)
            moves += ratio * ratio
            size += w[f, i] * w[f, i]
        speeds[n], sizes[n] = np.sqrt(moves), np.sqrt(size)
    return speeds, sizes


@compiled
def row_norms(x, norms, first, last):
    """Norm of rows [first, last) of x with the constant 1 of the bias."""
    for row in range(first, last):
        square = F32(1)
        for value in x[row]:
            square += value * value
        norms[row] = np.sqrt(square)


@compiled
def _reach(pre_act, signed, slack):
    """How near to selection a pre-activation can come."""
    return (abs(pre_act) if signed else pre_act) + slack


@compiled
def _list(features, lists, row, value, feature):
    """Enter a frozen or watched feature in the row's list, for one that is neither, or for the least if that is less.

    Returns what is not in the list then: `value`, that of the least, or 0.
    """
    reaches, listed = lists.reaches, lists.features
    least = 0
    for i in range(reaches.shape[1]):
        there = listed[row, i]
        if there < 0 or there == feature or features.slack[features.place[there]] == np.inf:
            reaches[row, i], listed[row, i] = value, feature
            return F32(0)
        if reaches[row, i] < reaches[row, least]:
            least = i
    if value <= reaches[row, least]:
        return value
    left = reaches[row, least]
    reaches[row, least], listed[row, least] = value, feature
    return left


@compiled
def watch(pre_acts, kth, order, features, watched, slack_now, lists, near, margin, signed, first, last):
    """Enter in the lists of rows [first, last) how far the pre-activations of the watched features can reach there.

    near[n] becomes True for those of `watched` (positions) that come near what the row selects, and is not entered:
    they are not to be frozen.
    """
    for row in range(first, last):
        r, limit = order[row], margin * kth[row]
        for n in range(watched.size):
            f = watched[n]
            value = _reach(pre_acts[row, f], signed, slack_now[n] * lists.norms[r])
            if not value < limit:
                near[n] = True
            elif value > lists.rest[r]:
                lists.rest[r] = max(lists.rest[r], _list(features, lists, r, value, features.ids[f]))


@compiled
def may_be_selected(batch, enc, kth, order, features, lists, wanted, unsure, signed):
    """Which frozen features can reach what a row of the batch selects.

    wanted (latent_dim,) becomes True for those that the lists name, looked at again, as their slack was larger when
    they were listed; unsure (rows,): there may be others. Returns the rows with any of either.
    """
    reaches, listed = lists.reaches, lists.features
    found = np.zeros(order.size, np.bool_)
    for row in range(order.size):
        r = order[row]
        found[row] = unsure[row] = not kth[row] > lists.rest[r]
        for i in range(reaches.shape[1]):
            if kth[row] > reaches[r, i]:
                continue
            f = listed[r, i]
            p = features.place[f]
            if f >= 0 and p >= features.n_live:
                pre_act = F32(0)
                for j in range(batch.shape[1]):
                    pre_act += batch[row, j] * enc[p, j]
                reaches[r, i] = _reach(pre_act, signed, features.slack[p] * lists.norms[r])
                if not kth[row] > reaches[r, i]:
                    found[row] = wanted[f] = True
    return np.flatnonzero(found)


@compiled
def list_anew(pre_acts, kth, order, features, rows, lists, wanted, signed):
    """Make the lists of `rows` of the batch from pre_acts (rows, frozen features); wanted as `may_be_selected`."""
    for n in range(rows.size):
        r = order[rows[n]]
        lists.features[r], lists.rest[r] = -1, 0
        for f in range(features.n_live, features.ids.size):
            value = _reach(pre_acts[n, f - features.n_live], signed, features.slack[f] * lists.norms[r])
            if not kth[rows[n]] > value:
                wanted[features.ids[f]] = True
            lists.rest[r] = max(lists.rest[r], _list(features, lists, r, value, features.ids[f]))
