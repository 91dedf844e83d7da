//! The values that codes stand for, in units of a block's scale.

use super::BLOCK;
use crate::plan::Code;
use niwaki_kernels::Codebook;

/// The weights of a block, or what belongs to each of them; a short block is filled up with zeros.
pub(crate) type Block = [f32; BLOCK];

/// Adding it leaves a float no room for digits after the point. The function that rounds is a call on x86-64 without SSE4.1.
const ROUNDS: f32 = 12_582_912.0;

/// The bits of [`ROUNDS`]: a small integer that was added to it is what is above them.
const ROUNDS_BITS: u32 = 0x4b40_0000;

/// Half steps from -128 to 128.
const HALVES: usize = 512;

/// The values that codes stand for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Levels {
    /// All integers from the first to the second.
    Linear(f32, f32),
    /// The integers of a table.
    Table(Box<Table>),
}

/// Integers, ascending, and which of them is next to a number. Halfway between two integers is a multiple of a half, so
/// from one half to the next it is the same.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    values: [f32; 16],
    codes: [u8; HALVES],
    nearest: [f32; HALVES],
}

impl Table {
    fn of(mut values: [i8; 16]) -> Table {
        values.sort_unstable();
        let codes = std::array::from_fn(|half| {
            // Inside the half, where nothing is halfway between two values.
            let x = half as f32 / 2.0 - 128.0 + 0.25;
            let distance = |value: i8| (f32::from(value) - x).abs();
            let places = 0..values.len();
            let nearest =
                places.min_by(|a, b| distance(values[*a]).total_cmp(&distance(values[*b])));
            nearest.unwrap_or(0) as u8
        });
        let values = values.map(f32::from);
        Table {
            values,
            codes,
            nearest: codes.map(|code| values[usize::from(code)]),
        }
    }

    /// In which half a number lies; the first and the last reach to infinity.
    #[inline]
    fn half(x: f32) -> usize {
        let down = (2.0 * x - 0.5).clamp(-256.0, 255.0) + ROUNDS;
        (down.to_bits().wrapping_sub(ROUNDS_BITS - 256) as usize) % HALVES
    }
}

impl Levels {
    /// What a linear code stands for; a codebook has to be given.
    pub(crate) fn of(code: Code, codebook: Option<&Codebook>) -> Levels {
        match (code, codebook) {
            (Code::Int8, _) => Levels::Linear(-127.0, 127.0),
            (Code::Codebook4, Some(codebook)) => Levels::table(*codebook.values()),
            (Code::Int4 | Code::Codebook4, _) => Levels::Linear(-8.0, 7.0),
        }
    }

    /// Those of a table, which is put in order.
    pub(crate) fn table(values: [i8; 16]) -> Levels {
        Levels::Table(Box::new(Table::of(values)))
    }

    /// The lowest and the highest.
    pub(crate) fn ends(&self) -> (f32, f32) {
        match self {
            Levels::Linear(low, high) => (*low, *high),
            Levels::Table(table) => (table.values[0], table.values[15]),
        }
    }

    /// Whether the highest is the lowest turned around.
    pub(crate) fn is_symmetric(&self) -> bool {
        let (low, high) = self.ends();
        matches!(self, Levels::Linear(..)) && low == -high
    }

    /// The level next to each number. Where two are equally near it may be either, of integers it is the even one.
    #[inline]
    pub(crate) fn nearest<const N: usize>(&self, x: &[f32; N]) -> [f32; N] {
        match self {
            // Limits are integers, so it is the same before and after rounding.
            Levels::Linear(low, high) => x.map(|x| x.clamp(*low, *high) + ROUNDS - ROUNDS),
            Levels::Table(table) => x.map(|x| table.nearest[Table::half(x)]),
        }
    }

    /// The code of the level next to a number: the integer, or the place in the ordered table.
    pub(crate) fn code(&self, x: f32) -> i8 {
        match self {
            Levels::Linear(low, high) => (x.clamp(*low, *high) + ROUNDS - ROUNDS) as i8,
            Levels::Table(table) => table.codes[Table::half(x)] as i8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_the_nearest_in_range_and_ties_go_to_even() {
        for (low, high) in [(-8.0f32, 7.0f32), (-127.0, 127.0)] {
            let levels = Levels::Linear(low, high);
            for step in -2600..=2600 {
                let x = step as f32 / 10.0 + if step % 3 == 0 { 0.05 } else { 0.0 };
                for x in [x, step as f32 * 0.5] {
                    let expected = x.round_ties_even().clamp(low, high);
                    assert_eq!(levels.nearest(&[x]), [expected], "{x}");
                    assert_eq!(f32::from(levels.code(x)), expected, "{x}");
                }
            }
        }
    }

    #[test]
    fn a_tables_values_are_the_nearest_whatever_their_order() {
        let mut values = [
            114, -127, -96, -75, -57, -41, -28, -16, -6, 1, 10, 20, 31, 44, 44, 80,
        ];
        let levels = Levels::table(values);
        values.sort_unstable();
        let values = values.map(f32::from);
        let far = [f32::MIN, -1e9, 1e9, f32::MAX];
        let near = (-5200..5200).map(|step| step as f32 / 40.0);
        for x in near.chain(far) {
            let [nearest] = levels.nearest(&[x]);
            let least = values.map(|value| (value - x).abs());
            let least = least.into_iter().fold(f32::INFINITY, f32::min);
            assert_eq!((nearest - x).abs(), least, "{x}");
            let code = usize::try_from(levels.code(x)).unwrap_or(usize::MAX);
            assert_eq!(values[code], nearest, "{x}");
        }
    }
}
