//! What an exported decoder takes in and gives out.

use super::LowerError;
use crate::onnx::OnnxModel;
use crate::onnx::proto::{ValueInfoProto, tensor_shape_proto::dimension, type_proto};

/// Names of a decoder's inputs and outputs.
#[derive(Clone, Debug, Default)]
pub(super) struct Boundary {
    pub(super) ids: String,
    pub(super) mask: Option<String>,
    pub(super) positions: Option<String>,
    /// `use_cache_branch` of merged decoders.
    pub(super) cache_flag: Option<String>,
    /// Cached keys and values with their shapes; `None` is the number of past tokens.
    pub(super) past: Vec<(String, Vec<Option<usize>>)>,
    pub(super) logits: String,
    /// Outputs that are neither the logits nor the cache.
    pub(super) others: Vec<String>,
}

/// A dimension as declared: a number or a name.
enum Dimension {
    Fixed(usize),
    Named,
}

fn dimensions(info: &ValueInfoProto) -> Option<Vec<Dimension>> {
    let type_proto::Value::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()? else {
        return None;
    };
    let dims = tensor
        .shape
        .as_ref()?
        .dim
        .iter()
        .map(|dim| match &dim.value {
            Some(dimension::Value::DimValue(value)) if *value > 0 => {
                Dimension::Fixed(*value as usize)
            }
            _ => Dimension::Named,
        });
    Some(dims.collect())
}

impl Boundary {
    /// Reads the inputs and outputs of a graph. `head_dim` and `kv_heads` stand in for sizes that the export
    /// leaves open.
    pub(super) fn of(
        model: &OnnxModel,
        kv_heads: Option<usize>,
        head_dim: Option<usize>,
    ) -> Result<Boundary, LowerError> {
        let graph = model.graph();
        let mut boundary = Boundary::default();
        for info in &graph.input {
            if model.initializer(info.name()).is_some() {
                continue;
            }
            let name = info.name().to_owned();
            match name.as_str() {
                "input_ids" => boundary.ids = name,
                "attention_mask" => boundary.mask = Some(name),
                "position_ids" => boundary.positions = Some(name),
                "use_cache_branch" => boundary.cache_flag = Some(name),
                _ => match dimensions(info) {
                    Some(dims) if dims.len() == 4 => {
                        let size = |axis: usize, default: Option<usize>| match dims[axis] {
                            Dimension::Fixed(size) => Some(size),
                            Dimension::Named => default,
                        };
                        let shape = vec![
                            Some(1),
                            Some(size(1, kv_heads).unwrap_or(1)),
                            None,
                            Some(size(3, head_dim).unwrap_or(64)),
                        ];
                        boundary.past.push((name, shape));
                    }
                    _ => return Err(LowerError::Input { name }),
                },
            }
        }
        if boundary.ids.is_empty() {
            return Err(LowerError::NoTokenIds);
        }
        let logits = graph
            .output
            .iter()
            .find(|output| output.name() == "logits")
            .or_else(|| graph.output.first());
        boundary.logits = logits
            .map(|output| output.name().to_owned())
            .ok_or(LowerError::NoLogits)?;
        let is_cache = |output: &ValueInfoProto| match dimensions(output) {
            Some(dims) => dims.len() == 4,
            None => output.name().starts_with("present"),
        };
        boundary.others = graph
            .output
            .iter()
            .filter(|output| output.name() != boundary.logits && !is_cache(output))
            .map(|output| output.name().to_owned())
            .collect();
        Ok(boundary)
    }

    /// What of the outputs is left out, for a person.
    pub(super) fn left_out(&self) -> Option<String> {
        let first = self.others.first()?;
        let more = match self.others.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "the export's output `{first}`{more} is left out: a bundle of a decoder gives logits"
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::onnx::small_models::{graph, model};

    #[test]
    fn outputs_that_are_neither_logits_nor_cache_are_named() {
        let outputs = ["hidden_states", "logits", "present.0.key", "attentions"];
        let model = model(graph(&["input_ids"], vec![], vec![], &outputs));
        let boundary = Boundary::of(&model, None, None).unwrap();
        assert_eq!(boundary.others, ["hidden_states", "attentions"]);
        assert!(
            boundary
                .left_out()
                .unwrap()
                .contains("`hidden_states` and 1 more")
        );
    }
}
