//! A bundle is refused when its weights are not numbers.
#![allow(clippy::unwrap_used)]

mod synthetic;

use niwaki_bundle::{Bundle, BundleError, HEADER_BYTES, Header, SectionKind, Verify};
use std::io::Write;
use synthetic::complete_bundle;

fn open(bytes: &[u8], verify: Verify) -> Result<Bundle, BundleError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Bundle::open_file(&file, 0, Some(bytes.len() as u64), verify)
}

fn header(bytes: &[u8]) -> Header {
    Header::decode(&bytes[..HEADER_BYTES], bytes.len() as u64).unwrap()
}

fn section(bytes: &[u8], kind: SectionKind) -> &[u8] {
    let entry = *header(bytes).section(kind).unwrap();
    &bytes[entry.offset as usize..][..entry.length as usize]
}

/// The bundle with other bytes in its weights, hashes right.
fn with_weight(bundle: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let (mut bundle, mut header) = (bundle.to_vec(), header(bundle));
    let kind = SectionKind::Weights;
    let weights = header.sections.iter_mut().find(|entry| entry.kind == kind);
    let weights = weights.unwrap();
    bundle[weights.offset as usize + at..][..value.len()].copy_from_slice(value);
    weights.hash = *blake3::hash(section(&bundle, kind)).as_bytes();
    bundle[..HEADER_BYTES].copy_from_slice(&header.encode());
    bundle
}

#[test]
fn weights_and_scales_that_are_not_finite_are_refused_with_the_weight_named() {
    let complete = complete_bundle();
    let table: serde_json::Value =
        serde_json::from_slice(section(&complete, SectionKind::WeightTable)).unwrap();
    let entries = |kind: &str| table[kind].as_array().unwrap().clone();
    for entry in entries("matrices").iter().chain(&entries("vectors")) {
        // What lies first is a value of floats and a scale of integers.
        let wide = match (&entry["element"], &entry["scale"]) {
            (serde_json::Value::String(element), _) if element == "f16" => false,
            (_, serde_json::Value::String(scale)) => scale == "f32",
            _ => true,
        };
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let bytes = match wide {
                true => broken.to_le_bytes().to_vec(),
                false => ((broken.to_bits() >> 16) as u16 | 0x7c00)
                    .to_le_bytes()
                    .to_vec(),
            };
            let at = entry["offset"].as_u64().unwrap() as usize;
            let bundle = with_weight(&complete, at, &bytes);
            let error = open(&bundle, Verify::Full).unwrap_err().to_string();
            let name = entry["name"].as_str().unwrap();
            let said = format!("weights {name:?} hold a value or a scale that is not finite");
            assert!(error.contains(&said), "{error}");
            assert!(open(&bundle, Verify::Structure).is_ok());
        }
    }
}
