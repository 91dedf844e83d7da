//! Reads queries, keys and values head by head: which columns, and how they turn with the position.

use super::super::base::{Bases, Def};
use super::super::form::{BaseId, Element};
use super::columns::Rows;
use niwaki_bundle::graph::PairLayout;

/// Elements of heads over tokens: what a head's element is the sum of.
pub(super) struct Heads<'a> {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    /// New tokens.
    pub(super) tokens: usize,
    /// `(head, token, column) -> summands`.
    #[expect(
        clippy::type_complexity,
        reason = "one closure per spelling of attention"
    )]
    pub(super) at: Box<dyn Fn(usize, usize, usize) -> Vec<(Element, f64)> + 'a>,
}

/// What was found out about heads.
#[derive(Clone, Debug)]
pub(super) struct HeadColumns {
    pub(super) base: BaseId,
    /// Base column of each head's columns, `[heads * head_dim]`.
    pub(super) columns: Vec<usize>,
    /// Factor on all of them, apart from the rotation.
    pub(super) factor: f64,
    pub(super) rotation: Option<Rotation>,
}

/// How pairs of columns turn.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    pub(super) pairs: PairLayout,
    /// Columns of a head that turn: the first ones.
    pub(super) rotated: usize,
    /// `[tokens][pair]`, radians.
    pub(super) angles: Vec<Vec<f64>>,
    /// Length of the turned columns relative to `factor`.
    pub(super) magnitude: f64,
}

/// Two rotations of the same positions differ by rounding only.
const SAME_ANGLE: f64 = 2e-3;

/// Relative difference of two lengths that bfloat16 cosines and sines make.
const SAME_LENGTH: f64 = 6e-3;

impl Heads<'_> {
    /// Which columns of which value the heads are, or why they are not a projection with a rotary embedding.
    pub(super) fn read(&self, bases: &Bases) -> Result<HeadColumns, String> {
        let first = (self.at)(0, 0, 0);
        let Some(&(element, _)) = first.first() else {
            return Err("its elements are zero".into());
        };
        let base = element.base;
        if matches!(bases.get(base).def, Def::Past) {
            return Err("it reads the cache where new tokens belong".into());
        }
        let Some(rows) = Rows::of(&bases.get(base).shape, self.tokens) else {
            return Err("its tokens cannot be told from its columns".into());
        };
        let mut columns = Vec::with_capacity(self.heads * self.head_dim);
        let mut factor = None;
        let mut rotation: Option<Rotation> = None;
        for head in 0..self.heads {
            let parts: Vec<Part> = (0..self.head_dim)
                .map(|column| self.part(base, rows, head, column))
                .collect::<Result<_, _>>()?;
            let (own, head_rotation, head_factor) = self.read_head(&parts)?;
            columns.extend(own);
            let same_factor = |held: f64| (held - head_factor).abs() <= 1e-5 * held.abs();
            if factor.is_some_and(|held| !same_factor(held)) {
                return Err("its heads have different factors".into());
            }
            factor = factor.or(Some(head_factor));
            match (&rotation, head_rotation) {
                (_, None) if head == 0 || rotation.is_none() => {}
                (None, Some(turned)) if head == 0 => rotation = Some(turned),
                (Some(held), Some(turned)) if held.agrees(&turned) => {}
                _ => return Err("its heads turn differently".into()),
            }
        }
        Ok(HeadColumns {
            base,
            columns,
            factor: factor.unwrap_or(1.0),
            rotation,
        })
    }

    /// The one or two base columns a head's column is made of, with their factors per token.
    fn part(&self, base: BaseId, rows: Rows, head: usize, column: usize) -> Result<Part, String> {
        let mut part = Part {
            columns: vec![],
            factors: vec![],
        };
        for token in 0..self.tokens {
            for (element, factor) in (self.at)(head, token, column) {
                let (from_token, from_column) = rows.place(element.index, self.tokens);
                if element.base != base || from_token != token {
                    return Err("it mixes values of different tokens or projections".into());
                }
                if factor == 0.0 {
                    continue;
                }
                let at = part
                    .columns
                    .iter()
                    .position(|&held| held == from_column)
                    .unwrap_or_else(|| {
                        part.columns.push(from_column);
                        part.factors.push(vec![0.0; self.tokens]);
                        part.columns.len() - 1
                    });
                part.factors[at][token] += factor;
            }
        }
        if matches!(part.columns.len(), 1 | 2) {
            Ok(part)
        } else {
            Err("its columns mix more than two".into())
        }
    }

    fn read_head(&self, parts: &[Part]) -> Result<(Vec<usize>, Option<Rotation>, f64), String> {
        let plain = |part: &Part| {
            part.columns.len() == 1 && part.factors[0].iter().all(|f| *f == part.factors[0][0])
        };
        let turned: Vec<usize> = (0..parts.len()).filter(|&i| !plain(&parts[i])).collect();
        let still: Vec<f64> = parts
            .iter()
            .filter(|part| plain(part))
            .map(|part| part.factors[0][0])
            .collect();
        if still.iter().any(|factor| *factor != still[0]) {
            return Err("its columns have different factors".into());
        }
        if turned.is_empty() {
            return Ok((
                parts.iter().map(|part| part.columns[0]).collect(),
                None,
                still[0],
            ));
        }
        let rotated = turned.len();
        if turned.iter().enumerate().any(|(i, &column)| i != column) || !rotated.is_multiple_of(2) {
            return Err("the columns that turn are not the first of a head".into());
        }
        let half = rotated / 2;
        let is_pair = |a: usize, b: usize| {
            parts[a].columns.len() == 2
                && parts[a]
                    .columns
                    .iter()
                    .all(|column| parts[b].columns.contains(column))
        };
        let pairs = if (0..half).all(|i| is_pair(i, i + half)) {
            PairLayout::Halves
        } else if (0..half).all(|i| is_pair(2 * i, 2 * i + 1)) {
            PairLayout::Interleaved
        } else {
            return Err(
                "the pairs of columns that turn together are neither halves nor neighbours".into(),
            );
        };
        let mut own: Vec<usize> = parts.iter().map(|part| part.columns[0]).collect();
        let mut angles = vec![vec![0.0; half]; self.tokens];
        let mut lengths = vec![];
        for pair in 0..half {
            let (a, b) = match pairs {
                PairLayout::Halves => (pair, pair + half),
                PairLayout::Interleaved => (2 * pair, 2 * pair + 1),
            };
            let turn =
                Turn::read(&parts[a], &parts[b]).ok_or("its columns do not turn in a circle")?;
            own[a] = turn.columns.0;
            own[b] = turn.columns.1;
            for (angles, (cos, sin)) in angles.iter_mut().zip(&turn.turns) {
                angles[pair] = sin.atan2(*cos);
                lengths.push(cos.hypot(*sin));
            }
        }
        let length = lengths.iter().sum::<f64>() / lengths.len() as f64;
        if lengths
            .iter()
            .any(|held| (held - length).abs() > SAME_LENGTH * length)
        {
            return Err("its columns do not turn in a circle".into());
        }
        let factor = still.first().copied().unwrap_or(length);
        Ok((
            own,
            Some(Rotation {
                pairs,
                rotated,
                angles,
                magnitude: length / factor,
            }),
            factor,
        ))
    }
}

impl Rotation {
    /// Both turn the same columns by the same angles.
    pub(super) fn agrees(&self, other: &Rotation) -> bool {
        let turn = std::f64::consts::TAU;
        self.pairs == other.pairs
            && self.rotated == other.rotated
            && (self.magnitude - other.magnitude).abs() < 1e-3
            && self
                .angles
                .iter()
                .flatten()
                .zip(other.angles.iter().flatten())
                .all(|(a, b)| {
                    let apart = (a - b).rem_euclid(turn);
                    apart.min(turn - apart) < SAME_ANGLE
                })
    }
}

/// The base columns a head's column is made of.
struct Part {
    columns: Vec<usize>,
    /// `[column][token]`.
    factors: Vec<Vec<f64>>,
}

impl Part {
    fn factor(&self, column: usize, token: usize) -> f64 {
        self.columns
            .iter()
            .position(|&held| held == column)
            .map_or(0.0, |at| self.factors[at][token])
    }
}

/// A pair of columns turning: which base column each one is at angle zero, and (cos, sin) per token.
struct Turn {
    columns: (usize, usize),
    turns: Vec<(f64, f64)>,
}

impl Turn {
    fn read(first: &Part, second: &Part) -> Option<Turn> {
        let &[a, b] = first.columns.as_slice() else {
            return None;
        };
        [(a, b), (b, a)].into_iter().find_map(|(x, y)| {
            let mut turns = vec![];
            for token in 0..first.factors[0].len() {
                // first = cos x - sin y, second = sin x + cos y
                let (cos, minus_sin) = (first.factor(x, token), first.factor(y, token));
                let (sin, other_cos) = (second.factor(x, token), second.factor(y, token));
                let size = cos.hypot(sin).max(1e-30);
                if (cos - other_cos).abs() > 1e-3 * size || (sin + minus_sin).abs() > 1e-3 * size {
                    return None;
                }
                turns.push(((cos + other_cos) / 2.0, (sin - minus_sin) / 2.0));
            }
            Some(Turn {
                columns: (x, y),
                turns,
            })
        })
    }
}
