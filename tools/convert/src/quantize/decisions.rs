//! What happens to every constant of an ONNX model: blocks, channels, or floats as before, and why.

use super::candidates::{Candidate, SMALLEST_TABLE_ROWS, candidates};
use super::channels::Channels;
use super::operand::Operand;
use super::stored::{NodeAt, Reader, StoredTensor, stored_tensors};
use super::{BLOCK, Code, QuantizeOptions, Quantizer};
use crate::onnx::FloatRows;
use crate::onnx::{DataType, OnnxError, OnnxModel, Place, Scopes, is_float};
use crate::plan::{Fate, MatrixKind, Plan, PlannedMatrix, Reason, decide};
use std::collections::{HashMap, HashSet};

/// Constants with fewer elements stay floats: they weigh nothing.
const SMALLEST: usize = BLOCK * BLOCK;
/// With fewer weights for each scale, scales take too much of what integers save.
const FEWEST_FOR_A_SCALE: usize = 8;
/// From this operator set on, `Mul` spreads its inputs over each other.
const FIRST_OPERATOR_SET: i64 = 7;

/// All constants of a model, and the nodes that can take one in blocks.
pub(super) struct Found<'a> {
    pub(super) candidates: Vec<Candidate<'a>>,
    pub(super) tensors: Vec<StoredTensor<'a>>,
}

/// A node that gets a matrix in blocks.
pub(super) struct ToBlocks {
    /// Among the candidates.
    pub(super) candidate: usize,
    pub(super) code: Code,
    /// Among the matrices of the plan.
    pub(super) planned: usize,
}

/// A tensor that gets a scale for each channel.
pub(super) struct ToChannels {
    /// Among the tensors.
    pub(super) tensor: usize,
    pub(super) axes: Vec<usize>,
    /// Among the matrices of the plan.
    pub(super) planned: usize,
    /// What reads it, for people.
    pub(super) reader: String,
    pub(super) at: NodeAt,
}

/// Why a tensor stays floats.
pub(super) struct Left {
    /// What reads it, for people.
    pub(super) node: String,
    pub(super) reason: String,
    /// It is a weight of some size.
    pub(super) is_weight: bool,
}

/// What happens to what.
#[derive(Default)]
pub(super) struct Decisions {
    pub(super) plan: Plan,
    pub(super) blocks: Vec<ToBlocks>,
    pub(super) channels: Vec<ToChannels>,
    pub(super) left: HashMap<Place, Left>,
    /// The first weight that is left, in the order of the model.
    pub(super) first_left: Option<Place>,
}

impl<'a> Found<'a> {
    pub(super) fn of(
        model: &OnnxModel,
        scopes: &Scopes<'a>,
        options: &QuantizeOptions,
    ) -> Result<Found<'a>, OnnxError> {
        Ok(Found {
            candidates: candidates(model, scopes, options)?,
            tensors: stored_tensors(scopes),
        })
    }

    pub(super) fn decide(
        &self,
        model: &OnnxModel,
        options: &QuantizeOptions,
        quantizer: &dyn Quantizer,
    ) -> Decisions {
        let mut tensors = self.tensors.iter();
        let beside = tensors.any(|tensor| quantized(tensor).is_some());
        let mut of_place: HashMap<&Place, Vec<usize>> = HashMap::new();
        for (index, candidate) in self.candidates.iter().enumerate() {
            of_place.entry(&candidate.place).or_default().push(index);
        }
        let mut decisions = Decisions::default();
        for (index, tensor) in self.tensors.iter().enumerate() {
            if let Some(planned) = quantized(tensor) {
                decisions.plan.matrices.push(planned);
                continue;
            }
            if !is_float(tensor.data_type) {
                continue;
            }
            let candidates = of_place.get(&tensor.place).map_or(&[][..], Vec::as_slice);
            let mut in_blocks = HashSet::new();
            let mut planned_as: Vec<(Code, usize)> = vec![];
            for &candidate in candidates {
                let held = &self.candidates[candidate];
                let (fate, reason) = decide(held.kind, false, beside, &options.wishes);
                let Fate::Quantize(code) = fate else {
                    continue;
                };
                if !held.takes(fate) {
                    continue;
                }
                in_blocks.insert(held.at);
                // A matrix that two nodes read alike is one.
                let same = planned_as.iter().find(|(planned, _)| *planned == code);
                let planned = same.map_or(decisions.plan.matrices.len(), |(_, planned)| *planned);
                if same.is_none() {
                    planned_as.push((code, planned));
                    decisions.plan.matrices.push(PlannedMatrix {
                        name: held.rows.name().to_owned(),
                        kind: held.kind,
                        rows: held.rows.rows(),
                        columns: held.rows.columns(),
                        fate,
                        format: format!("{}, block {BLOCK}", code.name()),
                        method: quantizer.name(),
                        reason,
                    });
                }
                decisions.blocks.push(ToBlocks {
                    candidate,
                    code,
                    planned,
                });
            }
            let others = tensor.readers.iter();
            let others: Vec<&Reader<'_>> = others
                .filter(|reader| !in_blocks.contains(&reader.at))
                .collect();
            if others.is_empty() && !tensor.is_result {
                continue;
            }
            let first = candidates.first().map(|first| self.candidates[*first].kind);
            let kind = first.unwrap_or_else(|| {
                let looks_up = |reader: &&Reader<'_>| reader.is_position_lookup;
                match others.iter().any(looks_up) {
                    true => MatrixKind::PositionTable,
                    false => MatrixKind::Other,
                }
            });
            let wish = decide(kind, false, beside, &options.wishes);
            decisions.rest(model, index, tensor, &others, kind, wish);
        }
        decisions
    }
}

impl Decisions {
    /// Decides of a tensor for those who do not read it in blocks.
    fn rest(
        &mut self,
        model: &OnnxModel,
        index: usize,
        tensor: &StoredTensor<'_>,
        readers: &[&Reader<'_>],
        kind: MatrixKind,
        (fate, wish): (Fate, Reason),
    ) {
        let reader = readers.first();
        let node = reader.map_or_else(String::new, |reader| reader.node.label());
        let no_weight = readers.iter().find_map(|reader| match reader.operand {
            Operand::NoWeight(why) => Some(why),
            _ => None,
        });
        let small = if tensor.dims().len() < 2 {
            Some("it has fewer than two dimensions")
        } else {
            (tensor.elements() < SMALLEST).then_some("it is small")
        };
        if let Some(reason) = small.or(no_weight) {
            let left = Left {
                node,
                reason: reason.to_owned(),
                is_weight: false,
            };
            self.left.insert(tensor.place.clone(), left);
            return;
        }
        let dims = tensor.dims();
        let planned = self.plan.matrices.len();
        let mut matrix = PlannedMatrix {
            name: tensor.tensor.name().to_owned(),
            kind,
            rows: dims[0],
            columns: tensor.elements().checked_div(dims[0]).unwrap_or(0),
            fate: Fate::Keep,
            format: type_name(tensor.data_type),
            method: "kept",
            reason: wish,
        };
        let axes = match fate {
            Fate::Quantize(_) => axes(model, tensor, readers),
            // Standard ONNX keeps floats in the type that the rest of the graph has.
            Fate::Keep | Fate::Float(_) => Err(matrix.reason.clone()),
        };
        match axes {
            Ok(axes) => {
                matrix.rows = Channels::new(&dims, &axes).count();
                matrix.columns = tensor.elements().checked_div(matrix.rows).unwrap_or(0);
                matrix.fate = Fate::Quantize(Code::Int8);
                matrix.format = "int8, a scale per channel".to_owned();
                matrix.method = "RTN";
                self.channels.push(ToChannels {
                    tensor: index,
                    axes,
                    planned,
                    at: reader.map_or((0, 0), |reader| reader.at),
                    reader: node,
                });
                self.plan.matrices.push(matrix);
            }
            Err(reason) => {
                self.plan.matrices.push(matrix);
                self.leave(planned, &tensor.place, tensor.data_type, node, reason);
            }
        }
    }

    /// Notes that a matrix of the plan stays floats.
    pub(super) fn leave(
        &mut self,
        planned: usize,
        place: &Place,
        data_type: DataType,
        node: String,
        reason: Reason,
    ) {
        self.first_left.get_or_insert_with(|| place.clone());
        let left = Left {
            node,
            reason: reason.to_string(),
            is_weight: true,
        };
        self.left.insert(place.clone(), left);
        let matrix = &mut self.plan.matrices[planned];
        matrix.fate = Fate::Keep;
        matrix.format = type_name(data_type);
        matrix.method = "kept";
        matrix.reason = reason;
    }
}

/// The axes of a tensor that count channels for all its readers.
fn axes(
    model: &OnnxModel,
    tensor: &StoredTensor<'_>,
    readers: &[&Reader<'_>],
) -> Result<Vec<usize>, Reason> {
    let no = |reason: &'static str| Err(Reason::NotQuantizable(reason.into()));
    if tensor.is_result {
        return no("it is a result of the model");
    }
    if model.opset("").unwrap_or(1) < FIRST_OPERATOR_SET {
        return no("the model's operator set is too old to scale integers in");
    }
    let mut common: Option<Vec<usize>> = None;
    for reader in readers {
        let axes = match &reader.operand {
            Operand::Channels(axes) => axes,
            Operand::Floats(reason) => return Err(Reason::NotQuantizable(reason.clone())),
            Operand::NoWeight(reason) => return no(reason),
        };
        if reader.node.is("Gather") {
            let looked_up = axes
                .first()
                .and_then(|axis| tensor.dims().get(*axis).copied());
            if looked_up.is_none_or(|rows| rows < SMALLEST_TABLE_ROWS) {
                return no("the table is small");
            }
        }
        // What suits the first is right for the others too, if not as good.
        common.get_or_insert_with(|| axes.clone());
    }
    let axes = common.unwrap_or_default();
    let count = Channels::new(&tensor.dims(), &axes).count();
    if tensor.elements() < count.saturating_mul(FEWEST_FOR_A_SCALE) {
        return no("too few of its weights would share a scale");
    }
    Ok(axes)
}

/// What is said of a tensor that holds quantized weights.
fn quantized(tensor: &StoredTensor<'_>) -> Option<PlannedMatrix> {
    let node = tensor.quantized_reader()?;
    let (dims, elements) = (tensor.dims(), tensor.elements());
    if dims.len() < 2 || elements < SMALLEST {
        return None;
    }
    let packed = |name: &str| node.int(name).and_then(|size| usize::try_from(size).ok());
    Some(PlannedMatrix {
        name: tensor.place.value.clone(),
        kind: MatrixKind::Other,
        rows: packed("N").unwrap_or(dims[0]),
        columns: packed("K").unwrap_or_else(|| elements.checked_div(dims[0]).unwrap_or(0)),
        fate: Fate::Keep,
        format: match node.int("bits") {
            Some(bits) => format!("{bits} bits"),
            None => type_name(tensor.data_type),
        },
        method: "kept",
        reason: Reason::Quantized,
    })
}

fn type_name(data_type: DataType) -> String {
    match data_type {
        DataType::Float => "f32".to_owned(),
        DataType::Float16 => "f16".to_owned(),
        DataType::Bfloat16 => "bf16".to_owned(),
        DataType::Double => "f64".to_owned(),
        other => other.as_str_name().to_lowercase(),
    }
}
