//! Single operators against what onnxruntime computes (tests/onnxruntime/check_operator_cases.py).

use proptest::prelude::*;
use prost::Message;
use serde::Deserialize;
use tract_onnx::prelude::{DatumType, Tensor};

use super::{
    super::proto::{AttributeProto, NodeProto, TensorProto},
    evaluate_node,
};

#[derive(Deserialize)]
struct Case {
    opset: i64,
    node: String,
    inputs: Vec<Option<Written>>,
    outputs: Vec<Written>,
}

#[derive(Deserialize, Debug)]
struct Written {
    r#type: String,
    dims: Vec<usize>,
    values: String,
}

impl Written {
    fn datum_type(&self) -> DatumType {
        self.r#type.parse().unwrap()
    }

    fn values(&self) -> Vec<f64> {
        self.values
            .split_whitespace()
            .map(|value| value.parse().unwrap())
            .collect()
    }

    fn tensor(&self) -> Tensor {
        let values = self.values();
        let wide = if matches!(
            self.datum_type(),
            DatumType::F64 | DatumType::F32 | DatumType::F16
        ) {
            Tensor::from_shape(&self.dims, &values)
        } else {
            let values: Vec<i64> = self
                .values
                .split_whitespace()
                .map(|value| value.parse().unwrap())
                .collect();
            Tensor::from_shape(&self.dims, &values)
        };
        wide.unwrap()
            .cast_to_dt(self.datum_type())
            .unwrap()
            .into_owned()
    }

    fn difference(&self, tensor: &Tensor) -> Option<String> {
        if tensor.datum_type() != self.datum_type() || tensor.shape() != self.dims {
            return Some(format!(
                "{:?} {:?} instead of {} {:?}",
                tensor.datum_type(),
                tensor.shape(),
                self.r#type,
                self.dims
            ));
        }
        let got = tensor.cast_to::<f64>().unwrap();
        let got = got
            .try_as_plain_ram()
            .unwrap()
            .as_slice::<f64>()
            .unwrap()
            .to_vec();
        let wanted = self.values();
        let tolerance = match self.datum_type() {
            DatumType::F16 => 2e-3,
            DatumType::F32 | DatumType::F64 => 2e-6,
            _ => 0.0,
        };
        let close = |a: f64, b: f64| {
            a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * b.abs().max(1.0)
        };
        (!got.iter().zip(&wanted).all(|(a, b)| close(*a, *b)))
            .then(|| format!("{got:?} instead of {wanted:?}"))
    }
}

fn cases() -> Vec<(NodeProto, Case)> {
    let cases: Vec<Case> = serde_json::from_str(include_str!("cases.json")).unwrap();
    cases
        .into_iter()
        .map(|case| {
            let bytes: Vec<u8> = (0..case.node.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&case.node[at..at + 2], 16).unwrap())
                .collect();
            (NodeProto::decode(bytes.as_slice()).unwrap(), case)
        })
        .collect()
}

#[test]
fn every_operator_agrees_with_onnxruntime() {
    let cases = cases();
    let mut failures = Vec::new();
    for (index, (node, case)) in cases.iter().enumerate() {
        let inputs: Vec<Option<Tensor>> = case
            .inputs
            .iter()
            .map(|input| input.as_ref().map(Written::tensor))
            .collect();
        let failure = match evaluate_node(node, &inputs, case.opset) {
            Err(error) => Some(error.to_string()),
            Ok(outputs) if outputs.len() != case.outputs.len() => {
                Some(format!("{} outputs", outputs.len()))
            }
            Ok(outputs) => case
                .outputs
                .iter()
                .zip(&outputs)
                .find_map(|(wanted, got)| wanted.difference(got)),
        };
        if let Some(failure) = failure {
            let types: Vec<_> = inputs
                .iter()
                .flatten()
                .map(|input| format!("{input:?}"))
                .collect();
            failures.push(format!(
                "case {index}, {} at opset {}, inputs {types:?}: {failure}",
                node.label(),
                case.opset
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} cases differ:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

fn node(op_type: &str, inputs: usize) -> NodeProto {
    NodeProto {
        op_type: Some(op_type.to_owned()),
        input: (0..inputs).map(|index| format!("in{index}")).collect(),
        output: vec!["out".to_owned()],
        ..NodeProto::default()
    }
}

fn evaluate(op_type: &str, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let inputs: Vec<_> = inputs.iter().cloned().map(Some).collect();
    evaluate_node(&node(op_type, inputs.len()), &inputs, 18).map_err(|error| error.to_string())
}

#[test]
fn a_result_that_would_fill_the_memory_is_refused_before_it_is_computed() {
    let huge = Tensor::from_shape(&[2], &[1i64 << 40, 1 << 40]).unwrap();
    let one = Tensor::from(1i64);
    for (op_type, inputs) in [
        ("ConstantOfShape", vec![huge.clone()]),
        ("Expand", vec![one.clone(), huge.clone()]),
        (
            "Tile",
            vec![Tensor::from_shape(&[1, 1], &[0f32]).unwrap(), huge],
        ),
        (
            "Range",
            vec![Tensor::from(0i64), Tensor::from(i64::MAX), one.clone()],
        ),
        ("OneHot", vec![one.clone(), Tensor::from(1i64 << 40), one]),
        (
            "Add",
            vec![
                Tensor::zero::<f32>(&[1 << 14, 1]).unwrap(),
                Tensor::zero::<f32>(&[1 << 14]).unwrap(),
            ],
        ),
        (
            "MatMul",
            vec![
                Tensor::zero::<f32>(&[1 << 14, 1]).unwrap(),
                Tensor::zero::<f32>(&[1, 1 << 14]).unwrap(),
            ],
        ),
    ] {
        let error = evaluate(op_type, &inputs).unwrap_err();
        assert!(error.contains("absurdly large"), "{op_type}: {error}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_an_error_and_no_panic() {
    let matrix = Tensor::zero::<f32>(&[2, 3]).unwrap();
    let odd = Tensor::zero::<f32>(&[5]).unwrap();
    let index = Tensor::from_shape(&[1], &[9i64]).unwrap();
    for (op_type, inputs) in [
        ("Add", vec![matrix.clone(), odd.clone()]),
        ("MatMul", vec![matrix.clone(), odd.clone()]),
        ("Gather", vec![matrix.clone(), index.clone()]),
        ("Reshape", vec![matrix.clone(), index.clone()]),
        ("Unsqueeze", vec![matrix.clone(), index.clone()]),
        ("Shape", vec![]),
        (
            "Where",
            vec![
                Tensor::from_shape(&[2], &[true, false]).unwrap(),
                odd.clone(),
                matrix.clone(),
            ],
        ),
        ("NoSuchOperator", vec![matrix]),
    ] {
        assert!(evaluate(op_type, &inputs).is_err(), "{op_type} has a value");
    }
}

#[test]
fn a_bfloat16_cast_rounds() {
    let mut cast = node("Cast", 1);
    cast.attribute.push(AttributeProto {
        name: Some("to".to_owned()),
        i: Some(16),
        ..AttributeProto::default()
    });
    let outputs = evaluate_node(&cast, &[Some(Tensor::from(1.0f32 + 1.0 / 512.0))], 18).unwrap();
    assert_eq!(outputs[0].cast_to_scalar::<f32>().unwrap(), 1.0);
}

#[test]
fn a_value_in_external_data_is_never_looked_up() {
    let tensor = TensorProto {
        data_type: Some(1),
        data_location: Some(1),
        dims: vec![1],
        ..TensorProto::default()
    };
    let mut constant = node("Constant", 0);
    constant.attribute.push(AttributeProto {
        name: Some("value".to_owned()),
        t: Some(tensor),
        ..AttributeProto::default()
    });
    assert!(
        evaluate_node(&constant, &[], 18)
            .unwrap_err()
            .to_string()
            .contains("external data")
    );
}

fn random_tensor(dims: &[usize], datum_type: DatumType, seed: u64) -> Tensor {
    let count: usize = dims.iter().product();
    let values: Vec<i64> = (0..count as u64)
        .map(|at| ((at + 1).wrapping_mul(seed | 1) >> 7) as i64 % 5 - 1)
        .collect();
    Tensor::from_shape(dims, &values)
        .unwrap()
        .cast_to_dt(datum_type)
        .unwrap()
        .into_owned()
}

proptest! {
    #[test]
    fn no_inputs_make_an_operator_crash(
        case in any::<prop::sample::Index>(),
        replaced in any::<prop::sample::Index>(),
        dims in prop::collection::vec(0usize..4, 0..4),
        type_index in 0usize..5,
        seed in any::<u64>(),
        attribute in prop::option::of((any::<prop::sample::Index>(), -6i64..7)),
    ) {
        static CASES: std::sync::LazyLock<Vec<(NodeProto, Case)>> = std::sync::LazyLock::new(cases);
        let (node, case) = case.get(&CASES);
        let mut inputs: Vec<Option<Tensor>> = case.inputs.iter().map(|input| input.as_ref().map(Written::tensor)).collect();
        if !inputs.is_empty() {
            let types = [DatumType::F32, DatumType::I64, DatumType::I32, DatumType::Bool, DatumType::U8];
            let place = replaced.index(inputs.len());
            inputs[place] = (seed % 9 != 0).then(|| random_tensor(&dims, types[type_index], seed));
        }
        let mut node = node.clone();
        if let Some((place, value)) = attribute.filter(|_| !node.attribute.is_empty()) {
            let place = place.index(node.attribute.len());
            let attribute = &mut node.attribute[place];
            attribute.i = attribute.i.map(|_| value);
            attribute.ints.iter_mut().for_each(|int| *int = value);
        }
        let _ = evaluate_node(&node, &inputs, case.opset);
    }
}
