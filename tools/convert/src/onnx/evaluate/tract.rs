//! Running a node through tract-onnx.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::{LazyLock, Once},
};

use prost::Message;
use tract_onnx::{Onnx, model::ParsingContext, pb, tract_hir::internal::*};

use crate::onnx::proto::NodeProto;

/// tract-onnx with its table of operators, which takes longer to fill than a node takes to run.
static ONNX: LazyLock<Onnx> = LazyLock::new(tract_onnx::onnx);
static NO_MODEL: LazyLock<pb::ModelProto> = LazyLock::new(pb::ModelProto::default);

thread_local! {
    /// Whether this thread is inside tract, where a panic is an answer and not worth a message.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The node's outputs, or why tract has none. Inputs that do not fit make some operators of tract panic.
pub(super) fn evaluate(
    node: &NodeProto,
    inputs: &[Option<Tensor>],
    opset: i64,
) -> Result<Vec<Tensor>, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !INSIDE.get() {
                report(info);
            }
        }));
    });
    INSIDE.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        run(node, inputs, opset).map_err(|error| format!("{error:#}"))
    }));
    INSIDE.set(false);
    result.unwrap_or_else(|_| Err("its inputs do not fit together".to_owned()))
}

fn run(node: &NodeProto, inputs: &[Option<Tensor>], opset: i64) -> TractResult<Vec<Tensor>> {
    let message = tract_message(node, inputs)?;
    let builder = ONNX
        .op_register
        .0
        .get(node.op_type())
        .context("the operator is not known")?;
    let context = ParsingContext {
        onnx_operator_set_version: opset,
        framework: &ONNX,
        model: &NO_MODEL,
        parent_graphs: vec![],
        model_dir: None,
        template: InferenceModel::default(),
    };
    let (operator, _) = builder(&context, &message)?;
    let values: TVec<TValue> = inputs
        .iter()
        .flatten()
        .map(|tensor| tensor.clone().into_tvalue())
        .collect();
    let outputs = match operator.eval_out_of_plan(values.clone()) {
        Ok(Some(outputs)) => outputs,
        _ => run_as_model(operator, values, message.output.len())?,
    };
    Ok(outputs.into_iter().map(TValue::into_tensor).collect())
}

/// Some operators only take shape when tract sees their inputs as constants of a model.
fn run_as_model(
    operator: Box<dyn InferenceOp>,
    values: TVec<TValue>,
    outputs: usize,
) -> TractResult<TVec<TValue>> {
    let mut model = InferenceModel::default();
    let mut constants = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        constants.push(model.add_const(format!("input{index}"), value.into_arc_tensor())?);
    }
    let node = model.add_node("node", operator, tvec![InferenceFact::default(); outputs])?;
    for (index, constant) in constants.into_iter().enumerate() {
        model.add_edge(constant, InletId::new(node, index))?;
    }
    let outlets: Vec<OutletId> = (0..outputs)
        .map(|index| OutletId::new(node, index))
        .collect();
    model.select_output_outlets(&outlets)?;
    model.into_typed()?.into_runnable()?.run(tvec![])
}

/// The node as tract's message. Inputs that are absent lose their names, so that tract sees the same ones.
fn tract_message(node: &NodeProto, inputs: &[Option<Tensor>]) -> TractResult<pb::NodeProto> {
    let mut node = node.clone();
    node.domain = None;
    node.name = Some("node".to_owned());
    node.input = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            input
                .as_ref()
                .map_or(String::new(), |_| format!("input{index}"))
        })
        .collect();
    Ok(pb::NodeProto::decode(node.encode_to_vec().as_slice())?)
}
