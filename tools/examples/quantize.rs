//! Quantizes one model: `quantize IN.onnx OUT.onnx 4|8 [accuracy_level]`.
use std::path::Path;

use niwaki_cli::{
    onnx::{OnnxModel, WeightLocation, write_model},
    quantize::{Bits, QuantizeOptions, quantize_model},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let bits = if arguments[3] == "8" {
        Bits::Eight
    } else {
        Bits::Four
    };
    let mut options = QuantizeOptions::new(bits);
    options.accuracy_level = arguments.get(4).map_or(Ok(0), |level| level.parse())?;
    let model = OnnxModel::open(&arguments[1])?;
    let (quantized, report) = quantize_model(&model, &options)?;
    let location = if arguments.len() > 5 {
        WeightLocation::External
    } else {
        WeightLocation::Automatic
    };
    write_model(&quantized, Path::new(&arguments[2]), location)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
