"""Compiled inner loops of the fused trainer: explicit vectors, so that sums stay in registers.

A compiler turns `out[i] += c * row[i]` into a load and a store of `out` for every multiply-add. The loops
here hold a piece of `out` in vector registers while they go through all rows that are added to it. Numba has
no vector values, so `Lanes(n)`, n float32 side by side, is added to its types: LLVM splits it into whatever
registers the processor has. Everything is compiled once per machine and cached on disk.
"""

# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"
from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import extending, njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model
from numba.np.arrayobj import make_array

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


@compiled
def adam(w, m, v, at, gradient, n, factors):
    """One torch.optim.Adam step of w[at : at + n]; gradient from 0; n a multiple of LINE.

    factors: beta1, beta2, lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), eps.
    """
    beta1, beta2, step_size, scale, eps = factors
    b1, c1 = spread(beta1, LINE), spread(F32(1) - beta1, LINE)
    b2, c2 = spread(beta2, LINE), spread(F32(1) - beta2, LINE)
    size, correction, small = spread(step_size, LINE), spread(scale, LINE), spread(eps, LINE)
    for i in range(0, n, LINE):
        g = load(gradient, i, LINE)
        m_i = b1 * load(m, at + i, LINE) + c1 * g
        v_i = b2 * load(v, at + i, LINE) + c2 * g * g
        store(m, at + i, m_i)
        store(v, at + i, v_i)
        store(w, at + i, load(w, at + i, LINE) - size * m_i / (root(v_i) * correction + small))


@compiled
def replay(arrays, since, positions, step, size, scale, beta1, beta2, limit, eps, stride, first, last):
    """The Adam steps without gradient that the features at positions[first:last] missed.

    arrays: flat (W, m, v); since: the last step each has seen; step: the last one it is to see.
    size[t] = lr / (1 - beta1^t), scale[t] = 1 / sqrt(1 - beta2^t). After `limit` steps only m and v go on.
    """
    small = spread(eps, LINE)
    w, m, v = arrays
    for n in range(first, last):
        at, seen = positions[n] * stride, since[positions[n]]
        missed = step - seen
        steps = min(missed, limit)
        m_factors, v_factors = np.empty(steps, np.float32), np.empty(steps, np.float32)
        for i in range(steps):
            m_factors[i] = size[seen + 1 + i] * beta1 ** (i + 1)
            v_factors[i] = scale[seen + 1 + i] * beta2 ** (0.5 * (i + 1))
        m_decay, v_decay = F32(beta1**missed), F32(beta2**missed)
        for i in range(at, at + stride, LINE):
            w_i, m_i, v_i = load(w, i, LINE), load(m, i, LINE), load(v, i, LINE)
            root_i = root(v_i)
            for j in range(steps):
                move = spread(m_factors[j], LINE) * m_i / (spread(v_factors[j], LINE) * root_i + small)
                w_i = w_i - move
            store(w, i, w_i)
            store(m, i, spread(m_decay, LINE) * m_i)
            store(v, i, spread(v_decay, LINE) * v_i)
        since[positions[n]] = step


@compiled
def gather(x, order, batch, first, last):
    """batch[row, :input_dim] = x[order[row]] for rows [first, last)."""
    for row in range(first, last):
        batch[row, : x.shape[1]] = x[order[row]]


@compiled
def select(pre_acts, n_live, ids, indices, acts, kth, rows):
    """Of each of `rows`, the k largest |pre_acts|; ties at the k-th go to the lowest id.

    indices, acts (rows, k); kth (rows,) is the k-th largest |pre_act|. NaN counts as larger than any number.
    """
    k = indices.shape[1]
    bits = np.empty(n_live, np.int32)
    for row in rows:
        values = pre_acts[row, :n_live].view(np.int32)
        largest = np.int32(0)
        for j in range(n_live):  # non-negative floats are in the order of their bits
            bits[j] = values[j] & np.int32(0x7FFFFFFF)
            largest = max(largest, bits[j])
        # Bisection: `low` is reached by at least k entries (by `found`), `high` by fewer.
        low, high, found = np.int64(0), np.int64(largest) + 1, n_live
        while found != k and high - low > 1:
            middle = (low + high) // 2
            threshold = np.int32(middle)
            count = np.int32(0)
            for j in range(n_live):
                count += np.int32(bits[j] >= threshold)
            if count >= k:
                low, found = middle, np.int64(count)
            else:
                high = middle
        threshold = np.int32(low)
        if found > k:  # more than k reach it and none can be told apart: leave out the highest ids
            surplus = found - k
            while surplus:
                out = -1
                for j in range(n_live):
                    if bits[j] == threshold and (out < 0 or ids[j] > ids[out]):
                        out = j
                bits[out] = -1
                surplus -= 1
        n = 0
        smallest = largest
        for j in range(n_live):
            if bits[j] >= threshold:
                indices[row, n] = j
                acts[row, n] = pre_acts[row, j]
                smallest = min(smallest, bits[j])
                n += 1
        bits[0] = smallest
        kth[row] = bits[:1].view(np.float32)[0]


@compiled
def scatter(indices, acts, n_dense, out, counts, rows):
    """Of each of `rows`: out[row, f] = act of feature f < n_dense, or zero; counts[row] = number of those.

    indices ascend.
    """
    for row in rows:
        out[row, :n_dense] = 0
        n = 0
        while n < indices.shape[1] and indices[row, n] < n_dense:
            out[row, indices[row, n]] = acts[row, n]
            n += 1
        counts[row] = n


@compiled
def zero_unselected(gradients, n_dense, indices, counts, first, last):
    """gradients[row, f] = 0 wherever feature f < n_dense is not selected."""
    for row in range(first, last):
        f = 0
        for n in range(counts[row]):
            gradients[row, f : indices[row, n]] = 0
            f = indices[row, n] + 1
        gradients[row, f:n_dense] = 0


@compiled
def reconstruct(batch, W_dec, b_dec, indices, acts, counts, k, stride, scale, residual, squares, first, last):
    """Of rows [first, last): residual = scale * (reconstruction - batch), squares (rows,) its norm² unscaled.

    On entry residual holds what the row's first counts[row] selected features add to the reconstruction.
    Column pieces are the outer loop, so that one piece of all decoder rows stays in the L2 cache.
    """
    squares[first:last] = 0
    start = 0
    while start < stride:
        left = stride - start
        for row in range(first, last):
            at, e0, e1 = row * stride + start, row * k + counts[row], row * k + k
            if left >= WIDE:
                wide = load(residual, at, WIDE) + load(b_dec, start, WIDE) - load(batch, at, WIDE)
                wide = _add_wide(wide, acts, indices, W_dec, stride, start, e0, e1)
                squares[row] += total(wide * wide)
                store(residual, at, spread(scale, WIDE) * wide)
            elif left >= NARROW:
                narrow = load(residual, at, NARROW) + load(b_dec, start, NARROW) - load(batch, at, NARROW)
                narrow = _add_narrow(narrow, acts, indices, W_dec, stride, start, e0, e1)
                squares[row] += total(narrow * narrow)
                store(residual, at, spread(scale, NARROW) * narrow)
            else:
                line = load(residual, at, LINE) + load(b_dec, start, LINE) - load(batch, at, LINE)
                line = _add_line(line, acts, indices, W_dec, stride, start, e0, e1)
                squares[row] += total(line * line)
                store(residual, at, spread(scale, LINE) * line)
        start += WIDE if left >= WIDE else (NARROW if left >= NARROW else LINE)


@compiled
def sort_by_feature(indices, acts, counts, n_rows, n_live, offsets, rows, coefs):
    """Counting sort of the selected entries, without each row's first counts[row].

    Those of feature f become [offsets[f], offsets[f + 1]) of rows and coefs.
    """
    offsets[: n_live + 1] = 0
    for row in range(n_rows):
        for j in range(counts[row], indices.shape[1]):
            offsets[indices[row, j] + 1] += 1
    for f in range(n_live):
        offsets[f + 1] += offsets[f]
    for row in range(n_rows):
        for j in range(counts[row], indices.shape[1]):
            f = indices[row, j]
            rows[offsets[f]] = row
            coefs[offsets[f]] = acts[row, j]
            offsets[f] += 1
    for f in range(n_live, 0, -1):
        offsets[f] = offsets[f - 1]
    offsets[0] = 0


@compiled
def update_decoder(residual, offsets, rows, coefs, grads, dec, factors, stride, features, first, last):
    """Gradient and Adam step of columns [first, last) of the decoder rows of `features`; dec is flat (W, m, v).

    grads (entries,) becomes these columns' part of d loss / d act of every entry. The decoder row of a feature that
    did not fire is left behind: see `replay`. Column blocks are the outer loop, so that one block of all residuals
    stays in the L2 cache.
    """
    gradient = np.empty(BLOCK, np.float32)
    grads[:] = 0
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        for f in features:
            e0, e1, base = offsets[f], offsets[f + 1], f * stride
            i = start
            while i + WIDE // 2 <= stop:
                half = _both_half(grads, dec[0], base + i, coefs, rows, residual, stride, i, e0, e1)
                store(gradient, i - start, half)
                i += WIDE // 2
            while i + NARROW <= stop:
                narrow = _both_narrow(grads, dec[0], base + i, coefs, rows, residual, stride, i, e0, e1)
                store(gradient, i - start, narrow)
                i += NARROW
            while i < stop:
                line = _both_line(grads, dec[0], base + i, coefs, rows, residual, stride, i, e0, e1)
                store(gradient, i - start, line)
                i += LINE
            adam(dec[0], dec[1], dec[2], base + start, gradient, stop - start, factors)


@compiled
def update_encoder(batch, offsets, rows, grads, enc, factors, stride, features, first, last):
    """Gradient and Adam step of columns [first, last) of the encoder rows of `features`; enc is flat (W, m, v).

    grads (entries,), d loss / d act, are the coefficients of the gradient.
    """
    gradient = np.empty(BLOCK, np.float32)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        for f in features:
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
            adam(enc[0], enc[1], enc[2], f * stride + start, gradient, stop - start, factors)


@compiled
def update_dense(gradients, arrays, factors, stride, feature, first, last):
    """Adam step of columns [first, last) of the features from `feature` on; arrays is flat (W, m, v).

    gradients: (features, last - first).
    """
    for n in range(len(gradients)):
        adam(arrays[0], arrays[1], arrays[2], (feature + n) * stride + first, gradients[n], last - first, factors)


@compiled
def update_idle(arrays, factors, stride, features, first, last):
    """Adam step without gradient of columns [first, last) of `features`; arrays is flat (W, m, v)."""
    nothing = np.zeros(last - first, np.float32)
    for f in features:
        adam(arrays[0], arrays[1], arrays[2], f * stride + first, nothing, last - first, factors)


@compiled
def update_bias(residual, n_rows, stride, bias, factors, first, last):
    """Gradient and Adam step of columns [first, last) of the decoder bias; bias is (b, m, v)."""
    gradient = np.empty(last - first, np.float32)
    for i in range(first, last, LINE):
        value = spread(F32(0), LINE)
        for row in range(n_rows):
            value = value + load(residual, row * stride + i, LINE)
        store(gradient, i - first, value)
    adam(bias[0], bias[1], bias[2], first, gradient, last - first, factors)


@compiled
def swap(arrays, a, b):
    """Exchange rows a and b of every array."""
    for array in arrays:
        for i in range(array.shape[1]):
            array[a, i], array[b, i] = array[b, i], array[a, i]


@compiled
def speeds_and_sizes(w, m, v, eps, features):
    """|m / (sqrt(v) + eps)| and |w|, norms of rows, for each of the features."""
    speeds, sizes = np.empty(features.size, np.float32), np.empty(features.size, np.float32)
    for n in range(features.size):
        f = features[n]
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
def _list(reaches, features, row, value, feature, place, slack):
    """Enter a frozen or watched feature in the row's list, for one that is neither, or for the least if that is less.

    Returns what is not in the list then: `value`, that of the least, or 0.
    """
    least = 0
    for i in range(reaches.shape[1]):
        there = features[row, i]
        if there < 0 or there == feature or slack[place[there]] == np.inf:
            reaches[row, i], features[row, i] = value, feature
            return F32(0)
        if reaches[row, i] < reaches[row, least]:
            least = i
    if value <= reaches[row, least]:
        return value
    left = reaches[row, least]
    reaches[row, least], features[row, least] = value, feature
    return left


@compiled
def watch(
    pre_acts,
    kth,
    order,
    norms,
    watched,
    slack_now,
    slack,
    ids,
    place,
    margin,
    reaches,
    features,
    rest,
    near,
    first,
    last,
):
    """Enter in the lists of rows [first, last) how far |pre_act| of the watched features can reach there.

    near[n] becomes True for those of `watched` (positions) that come near the row's k-th largest, and is not
    entered: they are not to be frozen.
    """
    for row in range(first, last):
        r, limit = order[row], margin * kth[row]
        for n in range(watched.size):
            f = watched[n]
            value = abs(pre_acts[row, f]) + slack_now[n] * norms[r]
            if not value < limit:
                near[n] = True
            elif value > rest[r]:
                rest[r] = max(rest[r], _list(reaches, features, r, value, ids[f], place, slack))


@compiled
def may_be_selected(batch, enc, kth, order, norms, slack, n_live, place, reaches, features, rest, wanted, unsure):
    """Which frozen features can reach the k-th largest |pre_act| of a row of the batch.

    wanted (latent_dim,) becomes True for those that the lists name, looked at again, as their slack was larger when
    they were listed; unsure (rows,): there may be others. Returns the rows with any of either.
    """
    found = np.zeros(order.size, np.bool_)
    for row in range(order.size):
        r = order[row]
        found[row] = unsure[row] = not kth[row] > rest[r]
        for i in range(reaches.shape[1]):
            if kth[row] > reaches[r, i]:
                continue
            f = features[r, i]
            p = place[f]
            if f >= 0 and p >= n_live:
                pre_act = F32(0)
                for j in range(batch.shape[1]):
                    pre_act += batch[row, j] * enc[p, j]
                reaches[r, i] = abs(pre_act) + slack[p] * norms[r]
                if not kth[row] > reaches[r, i]:
                    found[row] = wanted[f] = True
    return np.flatnonzero(found)


@compiled
def list_anew(pre_acts, kth, rows, order, norms, slack, ids, place, n_live, reaches, features, rest, wanted):
    """Make the lists of `rows` of the batch from pre_acts (rows, frozen features); wanted as `may_be_selected`."""
    for n in range(rows.size):
        r = order[rows[n]]
        features[r], rest[r] = -1, 0
        for f in range(n_live, ids.size):
            value = abs(pre_acts[n, f - n_live]) + slack[f] * norms[r]
            if not kth[rows[n]] > value:
                wanted[ids[f]] = True
            rest[r] = max(rest[r], _list(reaches, features, r, value, ids[f], place, slack))
