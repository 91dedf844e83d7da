//! The plan as people read it: matrices that fare alike on one line.

use super::{MatrixKind, Plan, PlannedMatrix};

/// Matrices of one kind that fare alike.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanLine<'a> {
    /// What they are for.
    pub kind: MatrixKind,
    /// How many there are.
    pub count: usize,
    /// Their weights.
    pub weights: u64,
    /// How they are stored.
    pub format: &'a str,
    /// By which method.
    pub method: &'a str,
    /// Why.
    pub reason: String,
}

impl Plan {
    /// The matrices by kind, format, method and reason, in the order in which the first of each comes.
    pub fn lines(&self) -> Vec<PlanLine<'_>> {
        let mut lines: Vec<PlanLine<'_>> = vec![];
        for matrix in &self.matrices {
            let line = PlanLine::of(matrix);
            let same = lines.iter_mut().find(|held| {
                (held.kind, held.format, held.method, &held.reason)
                    == (line.kind, line.format, line.method, &line.reason)
            });
            match same {
                Some(held) => {
                    held.count += 1;
                    held.weights += line.weights;
                }
                None => lines.push(line),
            }
        }
        lines
    }
}

impl PlanLine<'_> {
    fn of(matrix: &PlannedMatrix) -> PlanLine<'_> {
        PlanLine {
            kind: matrix.kind,
            count: 1,
            weights: matrix.weights(),
            format: &matrix.format,
            method: matrix.method,
            reason: matrix.reason.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Fate, Reason};
    use super::*;
    use crate::plan::Code;

    #[test]
    fn matrices_that_fare_alike_are_one_line() {
        let matrix = |kind, format: &str| PlannedMatrix {
            name: String::new(),
            kind,
            rows: 4,
            columns: 8,
            fate: Fate::Quantize(Code::Int4),
            format: format.to_owned(),
            method: "RTN",
            reason: Reason::Float,
        };
        let plan = Plan {
            matrices: vec![
                matrix(MatrixKind::Qkv, "int4"),
                matrix(MatrixKind::Down, "int4"),
                matrix(MatrixKind::Qkv, "int4"),
                matrix(MatrixKind::Qkv, "f16"),
            ],
        };
        let lines: Vec<_> = plan
            .lines()
            .iter()
            .map(|line| (line.kind, line.count, line.weights, line.format.to_owned()))
            .collect();
        assert_eq!(
            lines,
            [
                (MatrixKind::Qkv, 2, 64, "int4".to_owned()),
                (MatrixKind::Down, 1, 32, "int4".to_owned()),
                (MatrixKind::Qkv, 1, 32, "f16".to_owned()),
            ]
        );
    }
}
