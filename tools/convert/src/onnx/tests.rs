//! Models as outside input: well-formed, odd, damaged and hostile.

use std::{error::Error as _, fs, path::Path};

use half::{bf16, f16};
use proptest::prelude::*;
use prost::Message;
use tempfile::TempDir;

use super::{
    DataType, OnnxError, OnnxModel, TensorView, WeightLocation,
    proto::{FunctionProto, ModelProto, OperatorSetIdProto, TensorProto},
    small_models::*,
    write_model,
};

fn full_message(error: &OnnxError) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn view(tensor: TensorProto) -> Result<TensorView, OnnxError> {
    let name = tensor.name().to_owned();
    model(graph(&[], vec![tensor], vec![], &[]))
        .tensor(&name)
        .map(Option::unwrap)
}

fn write(folder: &TempDir, name: &str, proto: &ModelProto) -> std::path::PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, proto.encode_to_vec()).unwrap();
    path
}

fn external_view(folder: &TempDir, entries: &[(&str, &str)]) -> Result<TensorView, OnnxError> {
    let weights = external_tensor("w", &[2], entries);
    let path = write(
        folder,
        "model.onnx",
        &proto(graph(&[], vec![weights], vec![], &[])),
    );
    OnnxModel::open(path)
        .unwrap()
        .tensor("w")
        .map(Option::unwrap)
}

#[test]
fn weights_are_read_where_they_lie() {
    let bytes = bytes::Bytes::from(
        proto(graph(
            &[],
            vec![float_tensor("w", &[2], &[1.0, -2.0])],
            vec![],
            &[],
        ))
        .encode_to_vec(),
    );
    let model = OnnxModel::from_bytes(bytes.clone()).unwrap();
    let view = model.tensor("w").unwrap().unwrap();
    assert_eq!(view.to_f32().unwrap(), [1.0, -2.0]);
    assert!(
        bytes.as_ptr_range().contains(&view.data.as_ptr()),
        "the data was copied"
    );
    assert!(model.tensor("no such tensor").unwrap().is_none());
}

#[test]
fn floats_of_16_bits_widen_exactly() {
    let values = [1.5f32, -0.0, 65504.0, 2f32.powi(-24), f32::INFINITY];
    let half: Vec<u8> = values
        .iter()
        .flat_map(|&value| f16::from_f32(value).to_le_bytes())
        .collect();
    assert_eq!(
        view(raw_tensor("w", DataType::Float16, &[5], half))
            .unwrap()
            .to_f32()
            .unwrap(),
        values
    );
    let brain: Vec<u8> = [1.5f32, -3e38]
        .iter()
        .flat_map(|&value| bf16::from_f32(value).to_le_bytes())
        .collect();
    let brain = view(raw_tensor("w", DataType::Bfloat16, &[2], brain)).unwrap();
    assert_eq!(
        brain.to_f32().unwrap(),
        [1.5, bf16::from_f32(-3e38).to_f32()]
    );
    let mut last = [0.0];
    brain.read_f32(1..2, &mut last).unwrap();
    assert_eq!(last[0], bf16::from_f32(-3e38).to_f32());
    assert!(brain.read_f32(1..3, &mut [0.0; 2]).is_err());
}

#[test]
fn integers_of_every_width_are_read_with_their_sign() {
    let read = |data_type, dims: &[i64], data: Vec<u8>| {
        view(raw_tensor("w", data_type, dims, data))
            .unwrap()
            .to_i64()
            .unwrap()
    };
    assert_eq!(read(DataType::Int4, &[3], vec![0x8F, 0x07]), [-1, -8, 7]);
    assert_eq!(read(DataType::Uint4, &[3], vec![0x8F, 0x07]), [15, 8, 7]);
    assert_eq!(
        read(DataType::Int2, &[4], vec![0b11_10_01_00]),
        [0, 1, -2, -1]
    );
    assert_eq!(read(DataType::Uint2, &[3], vec![0b11_10_01]), [1, 2, 3]);
    assert_eq!(read(DataType::Int8, &[1], vec![0xFF]), [-1]);
    assert_eq!(read(DataType::Uint16, &[1], vec![0xFF, 0xFF]), [65535]);
    assert_eq!(read(DataType::Int16, &[1], vec![0xFF, 0xFF]), [-1]);
    assert_eq!(read(DataType::Bool, &[2], vec![0, 1]), [0, 1]);
    assert_eq!(
        read(DataType::Int64, &[], (-5i64).to_le_bytes().to_vec()),
        [-5]
    );
}

#[test]
fn elements_in_typed_fields_read_like_raw_ones() {
    let typed = |data_type: DataType| TensorProto {
        name: Some("w".to_owned()),
        data_type: Some(data_type as i32),
        dims: vec![2],
        ..TensorProto::default()
    };
    let floats = TensorProto {
        float_data: vec![0.5, 2.0],
        ..typed(DataType::Float)
    };
    assert_eq!(view(floats).unwrap().to_f32().unwrap(), [0.5, 2.0]);
    let half = TensorProto {
        int32_data: vec![0x3C00, 0xC000],
        ..typed(DataType::Float16)
    };
    assert_eq!(view(half).unwrap().to_f32().unwrap(), [1.0, -2.0]);
    let small = TensorProto {
        int32_data: vec![-1, 3],
        ..typed(DataType::Int8)
    };
    assert_eq!(view(small).unwrap().to_i64().unwrap(), [-1, 3]);
    let wide = TensorProto {
        int64_data: vec![1 << 40, -1],
        ..typed(DataType::Int64)
    };
    assert_eq!(view(wide).unwrap().to_i64().unwrap(), [1 << 40, -1]);
    let twice = TensorProto {
        float_data: vec![0.5, 2.0],
        raw_data: Some(vec![0; 8].into()),
        ..typed(DataType::Float)
    };
    assert!(view(twice).unwrap_err().to_string().contains("given twice"));
}

#[test]
fn a_tensor_that_is_not_what_it_declares_is_refused_by_name() {
    for (tensor, expected) in [
        (
            raw_tensor("w", DataType::Float, &[2], vec![0; 7]),
            "7 bytes",
        ),
        (
            raw_tensor("w", DataType::Float, &[-1], vec![]),
            "impossible",
        ),
        (
            raw_tensor(
                "w",
                DataType::Float,
                &[1 << 31, 1 << 31, 1 << 31],
                vec![0; 4],
            ),
            "impossible",
        ),
        (
            raw_tensor("w", DataType::Float, &[i64::MAX], vec![0; 4]),
            "impossible",
        ),
        (
            raw_tensor("w", DataType::Double, &[1 << 40], vec![0; 8]),
            "8 bytes",
        ),
        (raw_tensor("w", DataType::String, &[1], vec![]), "STRING"),
        (
            TensorProto {
                data_type: Some(99),
                ..raw_tensor("w", DataType::Float, &[1], vec![0; 4])
            },
            "99",
        ),
        (
            TensorProto {
                data_location: Some(7),
                ..raw_tensor("w", DataType::Float, &[1], vec![0; 4])
            },
            "location",
        ),
    ] {
        let message = view(tensor).unwrap_err().to_string();
        assert!(
            message.contains("\"w\"") && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn two_initializers_of_one_name_are_refused() {
    let bytes = proto(graph(
        &[],
        vec![float_tensor("w", &[0], &[]), float_tensor("w", &[0], &[])],
        vec![],
        &[],
    ));
    let error = OnnxModel::from_bytes(bytes.encode_to_vec())
        .unwrap_err()
        .to_string();
    assert!(error.contains("two initializers"), "{error}");
}

#[test]
fn external_data_is_mapped_at_its_offset() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    let bytes: Vec<u8> = [9.0f32, 1.0, 2.0]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    fs::write(folder.path().join("sub/w.bin"), bytes).unwrap();
    let entries = [
        ("location", "sub/w.bin"),
        ("offset", "4"),
        ("length", "8"),
        ("checksum", "unused"),
    ];
    assert_eq!(
        external_view(&folder, &entries).unwrap().to_f32().unwrap(),
        [1.0, 2.0]
    );
    let from_start = external_view(&folder, &[("location", "./sub/w.bin")]).unwrap();
    assert_eq!(from_start.to_f32().unwrap(), [9.0, 1.0]);
}

#[test]
fn external_data_outside_the_model_s_folder_is_refused() {
    let outside = TempDir::new().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, [0; 64]).unwrap();
    let folder = TempDir::new().unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&secret, folder.path().join("link")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(outside.path(), folder.path().join("folder")).unwrap();
    let absolute = secret.to_str().unwrap();
    let relative = format!(
        "../{}/secret",
        outside.path().file_name().unwrap().to_str().unwrap()
    );
    for location in [
        absolute,
        relative.as_str(),
        "x/../../secret",
        "link",
        "folder/secret",
        "",
        "..",
        "/",
    ] {
        let message = external_view(&folder, &[("location", location)])
            .unwrap_err()
            .to_string();
        assert!(message.contains("refused"), "{location:?}: {message}");
    }
}

#[cfg(unix)]
#[test]
fn a_model_that_is_a_link_may_use_data_beside_its_target() {
    let store = TempDir::new().unwrap();
    let folder = TempDir::new().unwrap();
    fs::write(store.path().join("data-blob"), [0; 8]).unwrap();
    let weights = external_tensor("w", &[2], &[("location", "model.data")]);
    let blob = write(
        &store,
        "model-blob",
        &proto(graph(&[], vec![weights], vec![], &[])),
    );
    std::os::unix::fs::symlink(blob, folder.path().join("model.onnx")).unwrap();
    std::os::unix::fs::symlink(
        store.path().join("data-blob"),
        folder.path().join("model.data"),
    )
    .unwrap();
    let model = OnnxModel::open(folder.path().join("model.onnx")).unwrap();
    assert_eq!(
        model.tensor("w").unwrap().unwrap().to_f32().unwrap(),
        [0.0, 0.0]
    );
}

#[test]
fn external_data_that_is_too_short_or_misdescribed_is_refused() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("w"), [0; 12]).unwrap();
    let with = |extra: &[(&str, &str)]| {
        let entries: Vec<_> = [("location", "w")].iter().chain(extra).copied().collect();
        full_message(&external_view(&folder, &entries).unwrap_err())
    };
    assert!(with(&[("offset", "5")]).contains("the file has 12"));
    assert!(with(&[("offset", "18446744073709551615")]).contains("the file has 12"));
    assert!(with(&[("offset", "-1")]).contains("impossible offset"));
    assert!(with(&[("length", "4")]).contains("takes 8"));
    assert!(with(&[("location", "w")]).contains("twice"));
    assert!(full_message(&external_view(&folder, &[]).unwrap_err()).contains("no location"));
    let missing = external_view(&folder, &[("location", "missing")]).unwrap_err();
    assert!(
        matches!(missing, OnnxError::Read { .. }) && full_message(&missing).contains("missing")
    );
    assert!(
        external_view(&folder, &[("location", ".")]).is_err(),
        "a folder has no bytes"
    );
}

#[test]
fn a_file_that_is_no_model_is_named_in_the_error() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.onnx");
    fs::write(&path, b"This is not a model.").unwrap();
    let error = OnnxModel::open(&path).unwrap_err();
    assert!(
        matches!(error, OnnxError::Decode { .. }) && error.to_string().contains("model.onnx"),
        "{error}"
    );
    fs::write(&path, b"").unwrap();
    assert!(
        OnnxModel::open(&path)
            .unwrap_err()
            .to_string()
            .contains("graph")
    );
    assert!(matches!(
        OnnxModel::open(folder.path().join("nowhere")),
        Err(OnnxError::Read { .. })
    ));
    assert!(matches!(
        OnnxModel::open(folder.path()),
        Err(OnnxError::Read { .. })
    ));
}

/// A model with a bit of everything, for cutting and altering.
fn varied() -> ModelProto {
    let branch = graph(
        &[],
        vec![float_tensor("inner", &[1], &[1.0])],
        vec![node("Neg", &["inner"], &["n"])],
        &["n"],
    );
    let mut proto = proto(graph(
        &["x", "c"],
        vec![float_tensor("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0])],
        vec![
            node("MatMul", &["x", "w"], &["y"]),
            with_attributes(
                node("If", &["c"], &["z"]),
                vec![graph_attribute("then_branch", branch)],
            ),
            with_attributes(node("Twice", &["y"], &["out"]), vec![int("k", 2)]),
        ],
        &["out", "z"],
    ));
    proto.functions.push(FunctionProto {
        name: Some("Twice".to_owned()),
        input: vec!["a".to_owned()],
        output: vec!["b".to_owned()],
        node: vec![node("Add", &["a", "a"], &["b"])],
        ..FunctionProto::default()
    });
    proto
}

fn use_everything(bytes: Vec<u8>) {
    if let Ok(mut model) = OnnxModel::from_bytes(bytes) {
        let names: Vec<String> = model
            .graph()
            .initializer
            .iter()
            .map(|tensor| tensor.name().to_owned())
            .collect();
        for name in names {
            if let Ok(Some(view)) = model.tensor(&name) {
                let _ = (view.to_f32(), view.to_i64(), view.to_tensor());
            }
        }
        let _ = model.inline_functions();
        let _ = model.sorted_nodes();
    }
}

proptest! {
    #[test]
    fn a_model_cut_short_never_panics(cut in 0.0f64..1.0) {
        let bytes = varied().encode_to_vec();
        let length = (bytes.len() as f64 * cut) as usize;
        use_everything(bytes[..length].to_vec());
    }

    #[test]
    fn a_model_with_altered_bytes_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = varied().encode_to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        use_everything(bytes);
    }
}

#[test]
fn nodes_are_sorted_by_what_they_use_and_otherwise_keep_their_order() {
    let branch = graph(&[], vec![], vec![node("Neg", &["late"], &["n"])], &["n"]);
    let model = model(graph(
        &["x"],
        vec![],
        vec![
            with_attributes(
                node("If", &["x"], &["branched"]),
                vec![graph_attribute("then_branch", branch)],
            ),
            node("Abs", &["x"], &["first"]),
            node("Add", &["first", "late"], &["sum"]),
            node("Exp", &["x"], &["late"]),
        ],
        &["sum"],
    ));
    let order: Vec<&str> = model
        .sorted_nodes()
        .unwrap()
        .iter()
        .map(|node| node.op_type())
        .collect();
    assert_eq!(order, ["Abs", "Exp", "If", "Add"]);
}

#[test]
fn a_cycle_and_a_value_computed_twice_are_errors() {
    let circle = model(graph(
        &["x"],
        vec![],
        vec![
            node("Add", &["x", "b"], &["a"]),
            node("Neg", &["a"], &["b"]),
        ],
        &["b"],
    ));
    assert!(
        circle
            .sorted_nodes()
            .unwrap_err()
            .to_string()
            .contains("its own result")
    );
    let twice = model(graph(
        &["x"],
        vec![],
        vec![node("Abs", &["x"], &["a"]), node("Neg", &["x"], &["a"])],
        &["a"],
    ));
    assert!(
        twice
            .sorted_nodes()
            .unwrap_err()
            .to_string()
            .contains("two nodes")
    );
}

fn function(name: &str, node: Vec<super::proto::NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("local".to_owned()),
        input: vec!["a".to_owned(), "optional".to_owned()],
        output: vec!["b".to_owned()],
        node,
        ..FunctionProto::default()
    }
}

fn call(name: &str, inputs: &[&str], outputs: &[&str]) -> super::proto::NodeProto {
    super::proto::NodeProto {
        domain: Some("local".to_owned()),
        ..node(name, inputs, outputs)
    }
}

fn inlined(
    functions: Vec<FunctionProto>,
    nodes: Vec<super::proto::NodeProto>,
) -> Result<OnnxModel, OnnxError> {
    let mut model = OnnxModel::from_bytes(
        ModelProto {
            functions,
            ..proto(graph(&["x"], vec![], nodes, &["y"]))
        }
        .encode_to_vec(),
    )?;
    model.inline_functions()?;
    Ok(model)
}

#[test]
fn a_call_becomes_the_function_s_nodes_with_the_call_s_attributes() {
    let mut reference = int("axis", 0);
    reference.i = None;
    reference.ref_attr_name = Some("axis".to_owned());
    let mut dropped = reference.clone();
    dropped.name = Some("end".to_owned());
    dropped.ref_attr_name = Some("not given".to_owned());
    let body = vec![
        with_attributes(
            node("Softmax", &["a"], &["inner"]),
            vec![reference, dropped],
        ),
        node("Clip", &["inner", "optional"], &["b"]),
    ];
    let mut softmax = function("SoftmaxOf", body);
    softmax.opset_import = vec![OperatorSetIdProto {
        domain: Some("com.microsoft".to_owned()),
        version: Some(1),
    }];
    let calls = vec![
        with_attributes(call("SoftmaxOf", &["x"], &["mid"]), vec![int("axis", 1)]),
        with_attributes(
            call("SoftmaxOf", &["mid", "x"], &["y"]),
            vec![int("axis", 2)],
        ),
    ];
    let model = inlined(vec![softmax], calls).unwrap();
    let nodes = &model.graph().node;
    assert_eq!(
        nodes.iter().map(|node| node.op_type()).collect::<Vec<_>>(),
        ["Softmax", "Clip", "Softmax", "Clip"]
    );
    assert_eq!(
        (
            nodes[0].int("axis"),
            nodes[2].int("axis"),
            nodes[0].attribute.len()
        ),
        (Some(1), Some(2), 1)
    );
    assert_eq!(
        (
            nodes[0].input[0].as_str(),
            nodes[1].output[0].as_str(),
            nodes[1].input_name(1)
        ),
        ("x", "mid", None)
    );
    assert_eq!(
        (nodes[2].input[0].as_str(), nodes[3].input[1].as_str()),
        ("mid", "x")
    );
    assert_ne!(
        nodes[0].output[0], nodes[2].output[0],
        "two calls share an inner value"
    );
    assert_eq!(model.opset("com.microsoft"), Some(1));
    model.sorted_nodes().unwrap();
}

#[test]
fn a_function_that_hands_its_input_on_becomes_an_identity() {
    let mut passes = function("Pass", vec![]);
    passes.output = vec!["a".to_owned()];
    let model = inlined(vec![passes], vec![call("Pass", &["x"], &["y"])]).unwrap();
    assert_eq!(model.graph().node[0].op_type(), "Identity");
    assert_eq!(
        (
            model.graph().node[0].input[0].as_str(),
            model.graph().node[0].output[0].as_str()
        ),
        ("x", "y")
    );
}

#[test]
fn functions_in_a_circle_or_without_bound_are_refused() {
    let circle = vec![
        function("A", vec![call("B", &["a"], &["b"])]),
        function("B", vec![call("A", &["a"], &["b"])]),
    ];
    let error = inlined(circle, vec![call("A", &["x"], &["y"])])
        .unwrap_err()
        .to_string();
    assert!(error.contains("circle"), "{error}");
    let ten_times = |name: &str| {
        (0..10)
            .map(|index| call(name, &["a"], &[if index == 0 { "b" } else { "" }]))
            .collect::<Vec<_>>()
    };
    let mut laughs = vec![function("F0", vec![node("Abs", &["a"], &["b"])])];
    laughs.extend(
        (1..12).map(|level| function(&format!("F{level}"), ten_times(&format!("F{}", level - 1)))),
    );
    let error = inlined(laughs, vec![call("F11", &["x"], &["y"])])
        .unwrap_err()
        .to_string();
    assert!(error.contains("expand"), "{error}");
}

#[test]
fn a_function_for_another_version_of_the_operators_is_refused() {
    let mut old = function("Old", vec![node("Abs", &["a"], &["b"])]);
    old.opset_import = vec![OperatorSetIdProto {
        domain: Some(String::new()),
        version: Some(7),
    }];
    let error = inlined(vec![old], vec![call("Old", &["x"], &["y"])])
        .unwrap_err()
        .to_string();
    assert!(error.contains("version 7"), "{error}");
}

fn weights(path: &Path) -> Vec<f32> {
    OnnxModel::open(path)
        .unwrap()
        .tensor("w")
        .unwrap()
        .unwrap()
        .to_f32()
        .unwrap()
}

#[test]
fn a_written_model_reads_back_inline_and_with_external_data() {
    let folder = TempDir::new().unwrap();
    let values: Vec<f32> = (0..1000).map(|value| value as f32).collect();
    let original = model(graph(
        &["x"],
        vec![
            float_tensor("small", &[1], &[5.0]),
            float_tensor("w", &[10, 100], &values),
        ],
        vec![node("MatMul", &["x", "w"], &["y"])],
        &["y"],
    ));
    let external = folder.path().join("external.onnx");
    write_model(&original, &external, WeightLocation::External).unwrap();
    assert_eq!(weights(&external), values);
    assert_eq!(
        fs::metadata(folder.path().join("external.onnx.data"))
            .unwrap()
            .len(),
        4000
    );
    assert!(fs::metadata(&external).unwrap().len() < 1000);
    let inline = folder.path().join("inline.onnx");
    write_model(
        &OnnxModel::open(&external).unwrap(),
        &inline,
        WeightLocation::Automatic,
    )
    .unwrap();
    assert_eq!(fs::read(&inline).unwrap(), original.proto().encode_to_vec());
    let again = folder.path().join("again.onnx");
    write_model(
        &OnnxModel::open(&inline).unwrap(),
        &again,
        WeightLocation::External,
    )
    .unwrap();
    assert_eq!(
        fs::read(folder.path().join("again.onnx.data")).unwrap(),
        fs::read(folder.path().join("external.onnx.data")).unwrap()
    );
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        5,
        "a temporary file was left"
    );
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.onnx");
    fs::write(&path, b"old").unwrap();
    let broken = model(graph(
        &[],
        vec![external_tensor("w", &[2], &[("location", "none")])],
        vec![],
        &[],
    ));
    assert!(write_model(&broken, &path, WeightLocation::Automatic).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn the_fields_of_newer_models_survive_a_rewrite() {
    let folder = TempDir::new().unwrap();
    let mut proto = proto(graph(
        &[],
        vec![],
        vec![node("Abs", &["x"], &["y"])],
        &["y"],
    ));
    let note = super::proto::StringStringEntryProto {
        key: Some("k".to_owned()),
        value: Some("v".to_owned()),
    };
    proto.metadata_props = vec![note.clone()];
    let graph = proto.graph.as_mut().unwrap();
    graph.node[0].metadata_props = vec![note];
    graph.node[0].overload = Some("o".to_owned());
    let model = OnnxModel::from_bytes(proto.encode_to_vec()).unwrap();
    let path = folder.path().join("model.onnx");
    write_model(&model, &path, WeightLocation::Inline).unwrap();
    assert_eq!(OnnxModel::open(path).unwrap().proto(), &proto);
}
