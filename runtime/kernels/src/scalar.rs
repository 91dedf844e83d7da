//! The definition: each vector operation as a loop over 16 lanes.

use crate::lanes::{IntLanes, Lanes, Simd};
use half::f16;
use std::array::from_fn;
use std::ops::{Add, Div, Mul, Sub};

#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[derive(Clone, Copy)]
pub(crate) struct Floats([f32; 16]);

#[derive(Clone, Copy)]
pub(crate) struct Ints([i32; 16]);

impl Simd for Scalar {
    type F = Floats;
    type I = Ints;
    const BATCH: usize = 4;

    fn splat(self, x: f32) -> Floats {
        Floats([x; 16])
    }

    fn load(self, x: &[f32; 16]) -> Floats {
        Floats(*x)
    }

    fn load_f32(self, bytes: &[u8; 64]) -> Floats {
        Floats(from_fn(|lane| {
            f32::from_le_bytes(bytes.as_chunks().0[lane])
        }))
    }

    fn load_f16(self, bytes: &[u8; 32]) -> Floats {
        Floats(from_fn(|lane| {
            f16::from_le_bytes(bytes.as_chunks().0[lane]).to_f32()
        }))
    }

    fn load_i8(self, bytes: &[u8; 16]) -> Ints {
        Ints(bytes.map(|byte| i32::from(byte as i8)))
    }

    #[allow(unsafe_code)]
    unsafe fn dots_int4<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        _sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: the caller's promise.
        let quants = unsafe { std::slice::from_raw_parts(quants, 32 * QUADS) };
        activations.map(|activations| {
            // SAFETY: the caller's promise.
            let activations = unsafe { std::slice::from_raw_parts(activations, 4 * QUADS) };
            let mut dots = [0; 16];
            let chunks = quants
                .as_chunks::<64>()
                .0
                .iter()
                .zip(activations.as_chunks::<8>().0);
            for (chunk, a) in chunks {
                for (dot, bytes) in dots.iter_mut().zip(chunk.as_chunks::<4>().0) {
                    for (j, byte) in bytes.iter().enumerate() {
                        let (low, high) = (i32::from(byte & 15) - 8, i32::from(byte >> 4) - 8);
                        *dot += low * i32::from(a[j]) + high * i32::from(a[4 + j]);
                    }
                }
            }
            Ints(dots)
        })
    }

    #[allow(unsafe_code)]
    unsafe fn dots_int8<const M: usize, const QUADS: usize>(
        self,
        quants: *const u8,
        activations: [*const i8; M],
        _sums: [i32; M],
    ) -> [Ints; M] {
        // SAFETY: the caller's promise.
        let quants = unsafe { std::slice::from_raw_parts(quants, 64 * QUADS) };
        activations.map(|activations| {
            // SAFETY: the caller's promise.
            let activations = unsafe { std::slice::from_raw_parts(activations, 4 * QUADS) };
            let mut dots = [0; 16];
            let chunks = quants
                .as_chunks::<64>()
                .0
                .iter()
                .zip(activations.as_chunks::<4>().0);
            for (chunk, a) in chunks {
                for (dot, bytes) in dots.iter_mut().zip(chunk.as_chunks::<4>().0) {
                    for (byte, a) in bytes.iter().zip(a) {
                        *dot += i32::from(*byte as i8) * i32::from(*a);
                    }
                }
            }
            Ints(dots)
        })
    }
}

impl Add for Floats {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] + other.0[lane]))
    }
}

impl Sub for Floats {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] - other.0[lane]))
    }
}

impl Mul for Floats {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] * other.0[lane]))
    }
}

impl Div for Floats {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] / other.0[lane]))
    }
}

impl Lanes for Floats {
    type I = Ints;

    fn all(self, x: f32) -> Self {
        Self([x; 16])
    }

    fn fma(self, factor: Self, summand: Self) -> Self {
        Self(from_fn(|lane| {
            self.0[lane].mul_add(factor.0[lane], summand.0[lane])
        }))
    }

    fn min(self, other: Self) -> Self {
        Self(from_fn(|lane| {
            if self.0[lane] < other.0[lane] {
                self.0[lane]
            } else {
                other.0[lane]
            }
        }))
    }

    fn max(self, other: Self) -> Self {
        Self(from_fn(|lane| {
            if self.0[lane] > other.0[lane] {
                self.0[lane]
            } else {
                other.0[lane]
            }
        }))
    }

    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    fn copysign(self, sign: Self) -> Self {
        Self(from_fn(|lane| self.0[lane].copysign(sign.0[lane])))
    }

    fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }

    fn pow2(self) -> Self {
        // The biased exponent is the whole number; the fraction is zero.
        Self(
            self.0
                .map(|x| f32::from_bits(((x as i32).wrapping_add(127) as u32) << 23)),
        )
    }

    fn if_less(self, limit: Self, less: Self, otherwise: Self) -> Self {
        Self(from_fn(|lane| {
            if self.0[lane] < limit.0[lane] {
                less.0[lane]
            } else {
                otherwise.0[lane]
            }
        }))
    }

    fn to_int(self) -> Ints {
        Ints(self.0.map(|x| x.round_ties_even() as i32))
    }

    fn sum(self) -> f32 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        lanes[0]
    }

    fn max_lane(self) -> f32 {
        self.0
            .into_iter()
            .fold(self.0[0], |max, x| if x > max { x } else { max })
    }

    fn store(self, out: &mut [f32; 16]) {
        *out = self.0;
    }

    fn store_f16(self, out: &mut [u8; 32]) {
        for (bytes, x) in out.as_chunks_mut().0.iter_mut().zip(self.0) {
            *bytes = f16::from_f32(x).to_le_bytes();
        }
    }
}

impl IntLanes for Ints {
    type F = Floats;

    fn sub_scaled(self, other: Self, factor: i32) -> Self {
        Self(from_fn(|lane| self.0[lane] - other.0[lane] * factor))
    }

    fn to_float(self) -> Floats {
        Floats(self.0.map(|x| x as f32))
    }

    fn store_i8(self, out: &mut [i8; 16]) {
        *out = self.0.map(|x| x as i8);
    }

    fn sum(self) -> i32 {
        self.0.iter().sum()
    }
}
