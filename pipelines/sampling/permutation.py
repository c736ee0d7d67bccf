"""Random permutations and random bits that are pure elementwise functions of a key."""

from typing import Any

import numpy as np
import tensorflow as tf

# Each round of the shuffle halves what is left of the original order, down to a millionth.
_SHUFFLE_ROUNDS = 20
# Numbers that keep the random streams of one seed apart.
PROPOSALS, ORDER, CLASS_ORDER, MEMBER_ORDER, COPIES, PHASES, OFFSETS = range(7)


def shuffled(index: tf.Tensor, size: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Returns element `index` of the permutation of [0, size) that belongs to `key`, elementwise.

    This is the swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012): each round
    pairs x with K − x mod size, where K is random, and a random bit decides whether the two change
    places. It computes one element without the others, and its cost does not depend on `size`,
    whereas `tf.random.experimental.index_shuffle` walks through at least 2^16 numbers to find one
    below a small `size`.
    """
    scale = tf.cast(size, tf.float64) * 2.0**-53

    def swap_or_not(number, index):
        round_key = _mixed(key + _GOLDEN * tf.cast(number, tf.uint64))
        partner = tf.cast(_upper_53_bits(round_key) * scale, tf.int64) - index
        partner += tf.where(partner < 0, size, 0)
        # A single bit under a new key needs no more than one fold between two products.
        coin = round_key + _GOLDEN * tf.bitcast(tf.maximum(index, partner), tf.uint64)
        coin = _folded(coin, 32) * _FACTORS[0]
        return number + 1, tf.where(tf.bitcast(coin, tf.int64) < 0, partner, index)

    _, element = tf.while_loop(
        lambda number, _: number <= _SHUFFLE_ROUNDS, swap_or_not, (tf.constant(1), index)
    )
    return element


# The mixing function and the increment of SplitMix64 (Steele, Lea, Flood: Fast Splittable
# Pseudorandom Number Generators, OOPSLA 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _folded(bits: tf.Tensor, shift: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, np.uint64(shift)))


def _mixed(bits: tf.Tensor) -> tf.Tensor:
    return _folded(_folded(_folded(bits, 30) * _FACTORS[0], 27) * _FACTORS[1], 31)


def hashed(seed: int, *numbers: Any) -> tf.Tensor:
    """Returns uint64 random bits, a pure function of the seed and int64 numbers that broadcast."""
    bits = _mixed(tf.bitcast(tf.constant(seed, tf.int64), tf.uint64))
    for number in numbers:
        bits = _hashed_further(bits, tf.convert_to_tensor(number, tf.int64))
    return bits


def _hashed_further(bits: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    return _mixed(bits + _GOLDEN * (tf.bitcast(number, tf.uint64) + np.uint64(1)))


def _upper_53_bits(bits: tf.Tensor) -> tf.Tensor:
    upper = tf.bitcast(tf.bitwise.right_shift(bits, np.uint64(11)), tf.int64)
    return tf.cast(upper, tf.float64)


def unit_interval(bits: tf.Tensor) -> tf.Tensor:
    """Maps random bits, uint64, to multiples of 2^-53 in [0, 1), float64."""
    return _upper_53_bits(bits) * 2.0**-53
