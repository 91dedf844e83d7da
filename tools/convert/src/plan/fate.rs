//! The rules: what becomes of a matrix, and why.

use super::{Code, MatrixKind, Weights, Wishes};
use crate::quantize::OnLattice;
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// What becomes of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its floats are quantized in blocks of 32.
    Quantize(Code),
    /// It is stored as floats of this type.
    Float(FloatType),
    /// Every value stays what it is.
    Keep,
}

/// Types of floats that a bundle holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

/// Why a matrix has its fate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is float in the export.
    Float,
    /// The export holds it quantized.
    Quantized,
    /// The export holds it quantized in a way that blocks cannot hold, so it becomes floats.
    NotInBlocks(&'static str),
    /// The export holds other matrices quantized and left this one in floats.
    LeftByTheExport,
    /// What a text tells of it is worth the bytes of a better format.
    WorthItsBytes,
    /// Training left it on a 4-bit grid: so many of its blocks.
    OnLattice(OnLattice),
    /// Some weights are too small, or too large, for the usual scales.
    OutOfReach,
    /// Positions are added to every token as they are.
    Positions,
    /// Everything stays as it is stored.
    AsStored,
    /// Everything is computed as ONNX means it.
    AsExported,
    /// It cannot be quantized.
    NotQuantizable(Cow<'static, str>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Float => f.write_str("float in the export"),
            Reason::Quantized => f.write_str("quantized by the export"),
            Reason::NotInBlocks(why) => write!(f, "quantized by the export, but {why}"),
            Reason::LeftByTheExport => {
                f.write_str("left in floats by the export, which quantized others")
            }
            Reason::WorthItsBytes => {
                f.write_str("measured: what it gains there is worth its bytes")
            }
            Reason::OnLattice(OnLattice { blocks, of }) => {
                write!(
                    f,
                    "trained for 4 bits: {blocks} of {of} blocks lie on a grid"
                )
            }
            Reason::OutOfReach => f.write_str("blocks of it are out of reach of 16-bit scales"),
            Reason::Positions => f.write_str("positions, added to every token as they are"),
            Reason::AsStored => f.write_str("as the export stores it"),
            Reason::AsExported => f.write_str("computed as ONNX means it"),
            Reason::NotQuantizable(why) => f.write_str(why),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What becomes of a matrix. `quantized` says whether the export holds it in integers, `beside` whether it holds any
/// matrix so.
pub fn decide(kind: MatrixKind, quantized: bool, beside: bool, wishes: &Wishes) -> (Fate, Reason) {
    if wishes.weights == Some(Weights::AsExported) {
        return (Fate::Float(FloatType::F32), Reason::AsExported);
    }
    if quantized {
        return (Fate::Keep, Reason::Quantized);
    }
    let said = match (kind.is_table(), beside) {
        (true, true) => wishes.embedding,
        (true, false) => wishes.embedding.or(wishes.weights),
        (false, _) => wishes.weights,
    };
    let wish = match said {
        Some(said) => said,
        None if wishes.weights == Some(Weights::AsStored) => Weights::AsStored,
        None if beside => return (Fate::Keep, Reason::LeftByTheExport),
        None => wishes.usual.weights(),
    };
    match (wish, wish.code()) {
        (Weights::AsStored, _) => (Fate::Keep, Reason::AsStored),
        // A table of positions is small and added to the residual stream as it is.
        (_, Some(_)) if kind == MatrixKind::PositionTable => {
            (Fate::Float(FloatType::F16), Reason::Positions)
        }
        (_, Some(code)) => (Fate::Quantize(code), Reason::Float),
        (Weights::F16, _) => (Fate::Float(FloatType::F16), Reason::Float),
        _ => (Fate::Float(FloatType::F32), Reason::Float),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MatrixKind::*;

    fn fate(kind: MatrixKind, beside: bool, wishes: Wishes) -> Fate {
        decide(kind, false, beside, &wishes).0
    }

    fn wishes(weights: Option<Weights>, embedding: Option<Weights>) -> Wishes {
        Wishes {
            weights,
            embedding,
            ..Wishes::default()
        }
    }

    #[test]
    fn floats_become_int4_when_nothing_is_said_but_positions_do_not() {
        for kind in [
            Embedding,
            EmbeddingAndHead,
            Qkv,
            AttentionOutput,
            GateUp,
            Down,
            Head,
            Other,
        ] {
            assert_eq!(
                fate(kind, false, Wishes::default()),
                Fate::Quantize(Code::Int4)
            );
        }
        assert_eq!(
            fate(PositionTable, false, Wishes::default()),
            Fate::Float(FloatType::F16)
        );
    }

    #[test]
    fn floats_beside_quantized_matrices_stay_unless_they_are_asked_for() {
        let nothing = Wishes::default();
        for kind in [Embedding, EmbeddingAndHead, PositionTable, Head, Down] {
            let decided = decide(kind, false, true, &nothing);
            assert_eq!(decided, (Fate::Keep, Reason::LeftByTheExport));
        }
        let int8 = wishes(Some(Weights::Int8), None);
        assert_eq!(fate(Head, true, int8), Fate::Quantize(Code::Int8));
        assert_eq!(fate(Embedding, true, int8), Fate::Keep);
        let embedding = wishes(None, Some(Weights::Int8));
        assert_eq!(fate(Embedding, true, embedding), Fate::Quantize(Code::Int8));
        assert_eq!(fate(Head, true, embedding), Fate::Keep);
    }

    #[test]
    fn an_embedding_can_be_asked_for_on_its_own() {
        let both = wishes(Some(Weights::Int4), Some(Weights::F16));
        assert_eq!(
            fate(EmbeddingAndHead, false, both),
            Fate::Float(FloatType::F16)
        );
        assert_eq!(fate(Head, false, both), Fate::Quantize(Code::Int4));
    }

    #[test]
    fn quantized_matrices_are_kept_whatever_is_asked_for_but_what_onnx_means() {
        for weights in [Weights::Int4, Weights::F32, Weights::AsStored] {
            let decided = decide(Down, true, true, &weights.into());
            assert_eq!(decided, (Fate::Keep, Reason::Quantized));
        }
        let decided = decide(Down, true, true, &Weights::AsExported.into());
        assert_eq!(decided.0, Fate::Float(FloatType::F32));
    }

    #[test]
    fn as_stored_keeps_everything() {
        for beside in [false, true] {
            let decided = decide(Embedding, false, beside, &Weights::AsStored.into());
            assert_eq!(decided, (Fate::Keep, Reason::AsStored));
        }
    }
}
