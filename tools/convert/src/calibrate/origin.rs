//! The ONNX nodes that a matrix comes from.

use crate::lower::Matrix;
use std::ops::Range;

/// An ONNX node and the rows of a matrix that it computes.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) node: String,
    pub(crate) rows: Range<usize>,
}

impl Origin {
    /// The ONNX nodes that the rows of a matrix come from, in order; `reader` where it is only one, or where a node reads it
    /// that others read too. Parts of one node that follow each other (queries, keys and values) are one.
    pub(crate) fn of(reader: &str, matrix: &Matrix) -> Vec<Origin> {
        let mut origins: Vec<Origin> = vec![];
        for origin in &matrix.origins {
            let first = origins.last().map_or(0, |last| last.rows.end);
            match origins.last_mut() {
                Some(last) if last.node == origin.node => last.rows.end += origin.rows,
                _ => origins.push(Origin {
                    node: origin.node.clone(),
                    rows: first..first + origin.rows,
                }),
            }
        }
        if origins.is_empty() {
            origins.push(Origin {
                node: reader.to_owned(),
                rows: 0..matrix.rows(),
            });
        }
        origins
    }
}
