//! Bundles are read back as written, and refused with section and offset when anything is wrong.
#![allow(clippy::unwrap_used)]

mod synthetic;

use niwaki_bundle::{
    Bundle, BundleError, HEADER_BYTES, Header, Manifest, Place, SECTION_ALIGNMENT, SectionEntry,
    SectionKind, Verify,
};
use niwaki_kernels::MatrixFormat;
use proptest::prelude::*;
use std::io::{Seek, SeekFrom, Write};
use std::sync::LazyLock;
use synthetic::{CODEBOOK, Decoder, complete_bundle};

static COMPLETE: LazyLock<Vec<u8>> = LazyLock::new(complete_bundle);

fn open(bytes: &[u8], verify: Verify) -> Result<Bundle, BundleError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Bundle::open_file(&file, 0, Some(bytes.len() as u64), verify)
}

fn header(bytes: &[u8]) -> Header {
    Header::decode(&bytes[..HEADER_BYTES], bytes.len() as u64).unwrap()
}

/// The bundle with its header changed and hashed again.
fn with_header(bytes: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = header(bytes);
    change(&mut header);
    [&header.encode(), &bytes[HEADER_BYTES..]].concat()
}

/// The bundle with the hashes of all sections made right again.
fn rehashed(bytes: &[u8], original: &Header) -> Vec<u8> {
    let mut header = original.clone();
    for entry in &mut header.sections {
        let body = &bytes[entry.offset as usize..][..entry.length as usize];
        entry.hash = *blake3::hash(body).as_bytes();
    }
    [&header.encode(), &bytes[HEADER_BYTES..]].concat()
}

/// The complete bundle with a section's body replaced, hashes right.
fn with_section(kind: SectionKind, body: &[u8]) -> Vec<u8> {
    replace_section(&COMPLETE, kind, body)
}

fn replace_section(complete: &[u8], kind: SectionKind, body: &[u8]) -> Vec<u8> {
    let mut header = header(complete);
    let mut bytes = complete.to_vec();
    let start = (bytes.len() as u64).next_multiple_of(SECTION_ALIGNMENT);
    bytes.resize(start as usize, 0);
    bytes.extend(body);
    header.sections.retain(|entry| entry.kind != kind);
    let hash = *blake3::hash(body).as_bytes();
    header.sections.push(SectionEntry {
        kind,
        optional: false,
        offset: start,
        length: body.len() as u64,
        hash,
    });
    // What was there before is padding now.
    let old = *self::header(complete).section(kind).unwrap();
    bytes[old.offset as usize..][..old.length as usize].fill(0);
    header.bundle_bytes = bytes.len() as u64;
    [&header.encode(), &bytes[HEADER_BYTES..]].concat()
}

fn section_text(kind: SectionKind) -> String {
    section_text_of(&COMPLETE, kind)
}

fn section_text_of(complete: &[u8], kind: SectionKind) -> String {
    let entry = *header(complete).section(kind).unwrap();
    String::from_utf8(complete[entry.offset as usize..][..entry.length as usize].to_vec()).unwrap()
}

fn entry_mut(header: &mut Header, kind: SectionKind) -> &mut SectionEntry {
    header
        .sections
        .iter_mut()
        .find(|entry| entry.kind == kind)
        .unwrap()
}

/// Everything a caller can ask of an opened bundle, to be sure that nothing in it panics.
fn use_everything(bundle: &Bundle) {
    let table = bundle.weight_table();
    for id in 0..table.matrices.len() + 1 {
        if let Some(matrix) = bundle.matrix(id) {
            let mut row = vec![0.0; matrix.cols()];
            matrix.read_row(matrix.rows() - 1, &mut row);
        }
    }
    for id in 0..table.vectors.len() + 1 {
        bundle.vector(id);
    }
    let _ = (
        bundle.tokenizer_json(),
        bundle.quality_report(),
        bundle.chat_template(),
    );
}

#[test]
fn what_was_written_is_read_back() {
    let bundle = open(&COMPLETE, Verify::Full).unwrap();
    assert_eq!(bundle.manifest().name, "synthetic");
    assert_eq!(bundle.generation_defaults().eos_tokens, [0]);
    assert_eq!(bundle.chat_template(), Some("{{ messages }}"));
    assert_eq!(
        bundle.tokenizer_json().unwrap().unwrap(),
        synthetic::TOKENIZER.as_bytes()
    );
    assert_eq!(
        bundle.quality_report().unwrap().unwrap()["perplexity"],
        12.5
    );
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        **bundle.graph(),
        Decoder::TINY.write(&folder.path().join("again.niwaki"), 1)
    );
    let embedding = bundle.matrix(0).unwrap();
    assert_eq!((embedding.rows(), embedding.cols()), (50, 40));
    assert_eq!(bundle.vector(0).unwrap().len(), 40);
    assert!(bundle.vector(10_000).is_none());
    use_everything(&bundle);
}

#[test]
fn packing_the_same_input_twice_gives_the_same_bytes() {
    assert_eq!(*COMPLETE, complete_bundle());
}

#[test]
fn sections_and_weights_are_aligned() {
    for entry in &header(&COMPLETE).sections {
        assert_eq!(entry.offset % SECTION_ALIGNMENT, 0, "{entry:?}");
    }
    let bundle = open(&COMPLETE, Verify::Full).unwrap();
    assert!(
        bundle
            .weight_table()
            .matrices
            .iter()
            .all(|matrix| matrix.offset % 64 == 0)
    );
}

#[test]
fn a_bundle_opens_from_inside_another_file() {
    for (before, length) in [
        (4, None),
        (16 * 1024, Some(COMPLETE.len() as u64)),
        (12_345 * 4, None),
    ] {
        let mut file = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(before)).unwrap();
        file.write_all(&COMPLETE).unwrap();
        file.write_all(b"the archive goes on").unwrap();
        let bundle = Bundle::open_file(&file, before, length, Verify::Full).unwrap();
        use_everything(&bundle);
    }
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(
        Bundle::open_file(&file, 3, None, Verify::Full),
        Err(BundleError::Unaligned { offset: 3 })
    ));
}

#[test]
fn a_bundle_cut_at_a_section_boundary_is_refused_with_that_section_named() {
    for entry in header(&COMPLETE).sections {
        let cuts = [
            entry.offset,
            entry.offset + 1,
            entry.offset + entry.length - 1,
        ];
        for cut in cuts {
            let error = open(&COMPLETE[..cut as usize], Verify::Full).unwrap_err();
            let BundleError::Truncated { place, .. } = error else {
                panic!("cut at {cut}: {error}")
            };
            assert_eq!(place, Place::Section(entry.kind), "cut at {cut}");
        }
    }
}

#[test]
fn a_cut_header_is_refused() {
    assert!(matches!(
        open(&[], Verify::Full),
        Err(BundleError::NotABundle)
    ));
    assert!(matches!(
        open(&COMPLETE[..5], Verify::Full),
        Err(BundleError::NotABundle)
    ));
    for cut in [8, 11, 12, 64, 100, HEADER_BYTES - 1] {
        let error = open(&COMPLETE[..cut], Verify::Full).unwrap_err();
        assert!(
            matches!(
                error,
                BundleError::Truncated {
                    place: Place::Header,
                    ..
                }
            ),
            "cut at {cut}: {error}"
        );
    }
}

#[test]
fn a_flipped_bit_is_found_in_every_section() {
    for entry in header(&COMPLETE).sections {
        for at in [
            entry.offset,
            entry.offset + entry.length / 2,
            entry.offset + entry.length - 1,
        ] {
            let mut bytes = COMPLETE.clone();
            bytes[at as usize] ^= 0x10;
            let error = open(&bytes, Verify::Full).unwrap_err();
            let BundleError::HashMismatch { place, offset } = error else {
                panic!("flip at {at}: {error}")
            };
            assert_eq!((place, offset), (Place::Section(entry.kind), entry.offset));
        }
    }
}

#[test]
fn a_flipped_bit_is_found_in_the_header_and_between_sections() {
    for at in [24, 40, 64, 70, 80, 100, HEADER_BYTES - 1] {
        let mut bytes = COMPLETE.clone();
        bytes[at] ^= 1;
        let error = open(&bytes, Verify::Structure).unwrap_err();
        assert!(
            matches!(
                error,
                BundleError::HashMismatch {
                    place: Place::Header,
                    ..
                }
            ),
            "flip at {at}: {error}"
        );
    }
    let mut bytes = COMPLETE.clone();
    let entry = header(&bytes).sections[1];
    bytes[(entry.offset + entry.length) as usize] = 1;
    let error = open(&bytes, Verify::Full).unwrap_err();
    assert!(
        matches!(
            error,
            BundleError::Invalid {
                place: Place::Padding,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn structure_leaves_only_the_weights_unread() {
    let weights = *header(&COMPLETE).section(SectionKind::Weights).unwrap();
    let mut bytes = COMPLETE.clone();
    bytes[weights.offset as usize + 100] ^= 1;
    assert!(open(&bytes, Verify::Structure).is_ok());
    assert!(open(&bytes, Verify::Full).is_err());
}

#[test]
fn another_file_and_a_later_format_are_told_apart() {
    let mut bytes = COMPLETE.clone();
    bytes[0] = b'X';
    assert!(matches!(
        open(&bytes, Verify::Full),
        Err(BundleError::NotABundle)
    ));
    let mut bytes = COMPLETE.clone();
    bytes[8] = 3;
    bytes[24..40].copy_from_slice(b"7.8.9\0\0\0\0\0\0\0\0\0\0\0");
    let error = open(&bytes, Verify::Full).unwrap_err();
    assert!(matches!(
        error,
        BundleError::UnsupportedVersion { found: 3, .. }
    ));
    assert!(error.to_string().contains("niwaki 7.8.9"), "{error}");
    bytes[8] = 1;
    let error = open(&bytes, Verify::Full).unwrap_err();
    assert!(matches!(error, BundleError::OldVersion { found: 1 }));
    assert!(error.to_string().contains("`niwaki build`"), "{error}");
}

#[test]
fn impossible_offsets_and_lengths_are_refused_with_the_section_named() {
    let weights = SectionKind::Weights;
    let refused = |what: &str, change: &dyn Fn(&mut SectionEntry)| {
        let bytes = with_header(&COMPLETE, |header| change(entry_mut(header, weights)));
        let error = open(&bytes, Verify::Full).unwrap_err();
        assert!(
            error.to_string().contains("section weights"),
            "{what}: {error}"
        );
        error
    };
    refused("misaligned", &|entry| entry.offset += 1);
    refused("before the end of the header", &|entry| entry.offset = 0);
    refused("wraps around", &|entry| {
        entry.offset = u64::MAX - SECTION_ALIGNMENT + 1
    });
    refused("oversized", &|entry| entry.length = u64::MAX);
    refused("past the end", &|entry| {
        entry.length = COMPLETE.len() as u64
    });
    refused("offset past the end", &|entry| entry.offset = 1 << 50);
}

#[test]
fn overlapping_sections_are_refused() {
    let bytes = with_header(&COMPLETE, |header| {
        let previous = header.sections[0].offset;
        header.sections[1].offset = previous;
    });
    let error = open(&bytes, Verify::Full).unwrap_err();
    assert!(error.to_string().contains("overlap"), "{error}");
}

#[test]
fn missing_and_repeated_sections_are_refused() {
    for kind in SectionKind::REQUIRED {
        let bytes = with_header(&COMPLETE, |header| {
            header.sections.retain(|entry| entry.kind != kind)
        });
        let error = open(&bytes, Verify::Structure).unwrap_err();
        assert!(
            matches!(error, BundleError::Missing { section, .. } if section == kind),
            "{error}"
        );
    }
    let bytes = with_header(&COMPLETE, |header| {
        header.sections[2].kind = header.sections[1].kind
    });
    assert!(
        open(&bytes, Verify::Full)
            .unwrap_err()
            .to_string()
            .contains("twice")
    );
}

#[test]
fn too_many_sections_are_refused() {
    let mut bytes = COMPLETE.clone();
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let hash = blake3::hash(&bytes[..HEADER_BYTES - 32]);
    bytes[HEADER_BYTES - 32..HEADER_BYTES].copy_from_slice(hash.as_bytes());
    let error = open(&bytes, Verify::Full).unwrap_err();
    assert!(
        matches!(
            error,
            BundleError::Invalid {
                place: Place::Header,
                offset: 12,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_section_longer_than_its_kind_may_be_is_refused_before_it_is_read() {
    let long = vec![b' '; (1 << 20) + 1];
    let error = open(&with_section(SectionKind::Manifest, &long), Verify::Full).unwrap_err();
    assert!(
        matches!(
            error,
            BundleError::TooLong {
                place: Place::Section(SectionKind::Manifest),
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn sections_of_later_versions_are_passed_over_when_optional() {
    let change = |optional: bool| {
        with_header(&COMPLETE, |header| {
            let report = entry_mut(header, SectionKind::QualityReport);
            report.kind = SectionKind::Unknown(77);
            report.optional = optional;
        })
    };
    let bundle = open(&change(true), Verify::Full).unwrap();
    assert!(bundle.quality_report().unwrap().is_none());
    let error = open(&change(false), Verify::Full).unwrap_err();
    assert!(error.to_string().contains("kind 77"), "{error}");
}

#[test]
fn a_manifest_may_have_fields_of_later_versions() {
    let body = serde_json::json!({
        "name": "n", "architecture": "a", "parameters": 1, "weights": "w", "invented_later": [1, 2]
    });
    let bundle = open(
        &with_section(SectionKind::Manifest, body.to_string().as_bytes()),
        Verify::Full,
    )
    .unwrap();
    assert_eq!(
        *bundle.manifest(),
        Manifest {
            name: "n".into(),
            architecture: "a".into(),
            parameters: 1,
            weights: "w".into(),
            ..Manifest::default()
        }
    );
}

#[test]
fn broken_json_is_refused_at_its_offset() {
    for kind in [
        SectionKind::Manifest,
        SectionKind::Graph,
        SectionKind::WeightTable,
        SectionKind::GenerationDefaults,
    ] {
        let bytes = with_section(kind, b"{\n\"a\": 1,\n !}");
        let error = open(&bytes, Verify::Full).unwrap_err();
        let BundleError::Json { place, offset, .. } = error else {
            panic!("{kind}: {error}")
        };
        assert_eq!(place, Place::Section(kind));
        let start = header(&bytes).section(kind).unwrap().offset;
        assert!(
            (start..start + 13).contains(&offset),
            "{offset} in a section at {start}"
        );
    }
}

#[test]
fn a_chat_template_that_is_not_utf8_is_refused() {
    let error = open(
        &with_section(SectionKind::ChatTemplate, b"ab\xffcd"),
        Verify::Full,
    )
    .unwrap_err();
    assert!(
        matches!(
            error,
            BundleError::Invalid {
                place: Place::Section(SectionKind::ChatTemplate),
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_weight_table_that_does_not_fit_is_refused_with_the_weight_named() {
    let table: serde_json::Value =
        serde_json::from_str(&section_text(SectionKind::WeightTable)).unwrap();
    let huge = serde_json::json!(u64::MAX);
    for (pointer, value) in [
        ("/matrices/0/offset", huge.clone()),
        ("/matrices/0/offset", serde_json::json!(1)),
        ("/matrices/0/length", huge.clone()),
        ("/matrices/0/rows", huge.clone()),
        ("/matrices/0/cols", serde_json::json!(1 << 20)),
        ("/matrices/0/rows", serde_json::json!(0)),
        ("/matrices/0/block", serde_json::json!(7)),
        ("/matrices/0/element", serde_json::json!("f32")),
        ("/matrices/0/zero_points", serde_json::json!(true)),
        ("/vectors/0/len", huge.clone()),
        ("/vectors/0/offset", huge),
    ] {
        let mut table = table.clone();
        match table.pointer_mut(pointer) {
            Some(field) => *field = value.clone(),
            None => {
                let (parent, field) = pointer.rsplit_once('/').unwrap();
                table.pointer_mut(parent).unwrap()[field] = value.clone();
            }
        }
        let error = open(
            &with_section(SectionKind::WeightTable, table.to_string().as_bytes()),
            Verify::Full,
        )
        .unwrap_err();
        assert!(
            error.to_string().contains("section weight table"),
            "{pointer} = {value}: {error}"
        );
    }
}

/// A bundle of codes, with what `change` makes of the first matrix's entry.
fn open_codes(change: impl FnOnce(&mut serde_json::Value)) -> Result<Bundle, BundleError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    let decoder = Decoder {
        format: MatrixFormat::CODEBOOK4,
        ..Decoder::TINY
    };
    decoder.write(&path, 1);
    let complete = std::fs::read(path).unwrap();
    let kind = SectionKind::WeightTable;
    let mut table: serde_json::Value =
        serde_json::from_str(&section_text_of(&complete, kind)).unwrap();
    change(&mut table["matrices"][0]);
    let bytes = replace_section(&complete, kind, table.to_string().as_bytes());
    open(&bytes, Verify::Full)
}

#[test]
fn a_codebook_is_read_back_with_its_matrix() {
    let bundle = open_codes(|_| {}).unwrap();
    let entry = &bundle.weight_table().matrices[0];
    assert_eq!(entry.format(), Some(MatrixFormat::CODEBOOK4));
    assert_eq!(entry.codebook, Some(CODEBOOK));
    let matrix = bundle.matrix(0).unwrap();
    assert_eq!(matrix.codebook().unwrap().values(), &CODEBOOK);
}

#[test]
fn a_codebook_that_is_missing_misplaced_or_impossible_is_refused_with_the_matrix_named() {
    let set = |field: &'static str, value: serde_json::Value| {
        open_codes(move |entry| entry[field] = value).unwrap_err()
    };
    let mut values = CODEBOOK.map(i32::from);
    let mut refusals = vec![
        set("codebook", serde_json::Value::Null),
        set("element", "int4".into()),
        set("block", 16.into()),
        set("scale", "f32".into()),
        set("zero_points", true.into()),
    ];
    values[5] = -128;
    refusals.push(set("codebook", values.to_vec().into()));
    let refusals: Vec<String> = refusals
        .iter()
        .map(|error| {
            assert!(matches!(error, BundleError::Invalid { .. }), "{error:?}");
            let text = error.to_string();
            text.split_once("matrix 0 (embedding): ").unwrap().1.into()
        })
        .collect();
    let unknown = "element, block, scale and zero points do not form a known format";
    assert_eq!(
        refusals,
        [
            "codebook given: false, codebook in the format: true",
            "codebook given: true, codebook in the format: false",
            unknown,
            unknown,
            unknown,
            "codebook value -128 at index 5 cannot be stored in this format",
        ]
    );
    // Not 16 bytes at all: not the JSON that a codebook is.
    values[5] = 128;
    for values in [&values[..], &CODEBOOK.map(i32::from)[..15]] {
        let error = set("codebook", values.to_vec().into());
        assert!(matches!(error, BundleError::Json { .. }), "{error:?}");
    }
}

#[test]
fn second_terms_of_inputs_are_read_back_with_their_matrix_and_refused_where_there_can_be_none() {
    let set = |blocks: usize| open_codes(move |entry| entry["refined"] = blocks.into());
    let cols = open_codes(|_| {}).unwrap().matrix(0).unwrap().cols();
    let most = cols / 32;
    assert_eq!(set(most).unwrap().matrix(0).unwrap().refined(), most);
    for blocks in [most + 1, usize::MAX] {
        let error = set(blocks).unwrap_err();
        let expected = format!(
            "matrix 0 (embedding): {blocks} blocks of inputs in two terms, where there can be {most}"
        );
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn a_graph_that_does_not_fit_is_refused_with_the_node_named() {
    let graph: serde_json::Value = serde_json::from_str(&section_text(SectionKind::Graph)).unwrap();
    let node_of = |op: &str| {
        graph["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .position(|node| node["op"]["op"] == op)
            .unwrap()
    };
    let (linear, rope, attention) = (node_of("linear"), node_of("rope"), node_of("attention"));
    let second_attention = graph["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .rposition(|node| node["op"]["op"] == "attention")
        .unwrap();
    for (pointer, value) in [
        (
            format!("/nodes/{linear}/op/weight"),
            serde_json::json!(9999),
        ),
        (format!("/nodes/{linear}/op/bias"), serde_json::json!(9999)),
        (format!("/nodes/{linear}/width"), serde_json::json!(1)),
        (
            format!("/nodes/{linear}/width"),
            serde_json::json!(u64::MAX),
        ),
        (
            format!("/nodes/{linear}/inputs/0/node"),
            serde_json::json!(linear),
        ),
        (
            format!("/nodes/{linear}/inputs/0/node"),
            serde_json::json!(1u64 << 40),
        ),
        (
            format!("/nodes/{linear}/inputs/0/offset"),
            serde_json::json!(1),
        ),
        (
            format!("/nodes/{linear}/inputs/0/offset"),
            serde_json::json!(u64::MAX),
        ),
        (
            format!("/nodes/{linear}/inputs/0/width"),
            serde_json::json!(0),
        ),
        (format!("/nodes/{linear}/inputs"), serde_json::json!([])),
        (format!("/nodes/{rope}/op/table"), serde_json::json!(5)),
        (format!("/nodes/{rope}/op/head_dim"), serde_json::json!(7)),
        (format!("/nodes/{rope}/op/head_dim"), serde_json::json!(0)),
        (format!("/nodes/{rope}/op/head_dim"), serde_json::json!(2)),
        (format!("/nodes/{attention}/op/layer"), serde_json::json!(1)),
        (format!("/nodes/{attention}/op/heads"), serde_json::json!(0)),
        (
            format!("/nodes/{attention}/op/heads"),
            serde_json::json!(u64::MAX),
        ),
        (
            format!("/nodes/{second_attention}/op/layer"),
            serde_json::json!(0),
        ),
        (
            format!("/nodes/{second_attention}/op/layer"),
            serde_json::json!(2),
        ),
        ("/layers/0/kv_heads".into(), serde_json::json!(0)),
        ("/layers/0/kv_heads".into(), serde_json::json!(1u64 << 60)),
        ("/layers/0/head_dim".into(), serde_json::json!(u64::MAX)),
        ("/layers/0/window".into(), serde_json::json!(0)),
        ("/ropes/0/inverse_frequencies".into(), serde_json::json!([])),
        ("/ropes/0/magnitude".into(), serde_json::json!(1e300)),
        ("/context_tokens".into(), serde_json::json!(u64::MAX)),
        ("/inputs".into(), serde_json::json!([])),
        (
            "/inputs/0/kind/token_ids/count".into(),
            serde_json::json!(51),
        ),
        (
            "/inputs/0/kind/token_ids/count".into(),
            serde_json::json!(49),
        ),
        (
            "/inputs/0/kind/token_ids/count".into(),
            serde_json::json!(0),
        ),
        (
            "/inputs/0/kind".into(),
            serde_json::json!({"rows": {"width": 40}}),
        ),
        (
            "/inputs".into(),
            serde_json::json!([graph["inputs"][0], graph["inputs"][0]]),
        ),
        ("/nodes/0/op/input".into(), serde_json::json!(1)),
        ("/outputs".into(), serde_json::json!([])),
        ("/outputs/0/node".into(), serde_json::json!(u64::MAX)),
        (
            "/outputs".into(),
            serde_json::json!([graph["outputs"][0], graph["outputs"][0]]),
        ),
        ("/layers/0/causal".into(), serde_json::json!(false)),
    ] {
        let mut graph = graph.clone();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let parent = graph.pointer_mut(parent).unwrap();
        parent[field] = value.clone();
        let error = open(
            &with_section(SectionKind::Graph, graph.to_string().as_bytes()),
            Verify::Full,
        )
        .unwrap_err();
        assert!(
            matches!(error, BundleError::Graph { .. }),
            "{pointer} = {value}: {error}"
        );
    }
}

#[test]
fn a_writer_that_fails_leaves_the_old_bundle_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    let graph = Decoder::TINY.write(&path, 3);
    let before = std::fs::read(&path).unwrap();
    let writer = niwaki_bundle::write::BundleWriter::create(&path).unwrap();
    // The graph needs weights that were not added.
    assert!(writer.finish(&Manifest::default(), &graph).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "no temporary file is left"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cut_anywhere_it_is_refused(cut in 0usize..COMPLETE.len()) {
        prop_assert!(open(&COMPLETE[..cut], Verify::Structure).is_err());
    }

    #[test]
    fn changed_anywhere_it_is_refused(at in 0usize..COMPLETE.len(), flip in 1u8..) {
        let mut bytes = COMPLETE.clone();
        bytes[at] ^= flip;
        prop_assert!(open(&bytes, Verify::Full).is_err());
    }

    /// Hashes are right again, so that the readers behind them meet the damage.
    #[test]
    fn changed_sections_with_right_hashes_never_panic(
        section in 0usize..8, changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let original = header(&COMPLETE);
        let entry = original.sections[section];
        let mut bytes = COMPLETE.clone();
        let body = &mut bytes[entry.offset as usize..][..entry.length as usize];
        for (at, byte) in changes {
            body[at.index(entry.length as usize)] = byte;
        }
        if let Ok(bundle) = open(&rehashed(&bytes, &original), Verify::Full) {
            use_everything(&bundle);
        }
    }

    /// Digits replaced by digits keep the JSON readable: other numbers reach the checks.
    #[test]
    fn other_numbers_with_right_hashes_never_panic(
        table in any::<bool>(), changes in proptest::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 1..6)
    ) {
        let original = header(&COMPLETE);
        let kind = if table { SectionKind::WeightTable } else { SectionKind::Graph };
        let entry = *original.section(kind).unwrap();
        let mut bytes = COMPLETE.clone();
        let body = &mut bytes[entry.offset as usize..][..entry.length as usize];
        let digits: Vec<usize> = (0..body.len()).filter(|at| body[*at].is_ascii_digit()).collect();
        for (at, digit) in changes {
            body[digits[at.index(digits.len())]] = digit;
        }
        if let Ok(bundle) = open(&rehashed(&bytes, &original), Verify::Full) {
            use_everything(&bundle);
        }
    }

    #[test]
    fn random_headers_with_right_hashes_never_panic(
        at in 8usize..1000, bytes in proptest::collection::vec(any::<u8>(), 1..16)
    ) {
        let mut mutated = COMPLETE.clone();
        mutated[at..at + bytes.len()].copy_from_slice(&bytes);
        let hash = blake3::hash(&mutated[..HEADER_BYTES - 32]);
        mutated[HEADER_BYTES - 32..HEADER_BYTES].copy_from_slice(hash.as_bytes());
        if let Ok(bundle) = open(&mutated, Verify::Structure) {
            use_everything(&bundle);
        }
    }
}
