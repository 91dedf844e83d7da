//! What a bundle is made by: options of the command line, of a recipe file and of a preset.

use super::adapters::LoraFolder;
use super::preset::Preset;
use crate::commands::error::CommandError;
use crate::commands::prune::{Kept, Method, PruneAmount, share};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use niwaki_convert::build::{Budget, REFINE_SHARE, Weights, Wishes};
use niwaki_convert::plan::Usual;
use niwaki_convert::quantize::{Gptq, Quantizer, RoundToNearest, ScaleSearch};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Largest recipe file that is read.
const RECIPE_BYTES_MAX: u64 = 64 << 10;

/// Everything that decides what a bundle becomes, besides the export. The keys of a recipe file are the names of the options.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Recipe {
    /// Options that were measured to go well together; those that are given take their place.
    #[arg(long, value_enum)]
    #[serde(deserialize_with = "chosen")]
    pub(super) preset: Option<Preset>,
    /// How float weights are stored; codebook4 if nothing is said, or as they are in an export that holds quantized ones.
    #[arg(long, value_enum)]
    #[serde(deserialize_with = "chosen")]
    pub(super) weights: Option<FloatWeights>,
    /// How a float embedding is stored; if nothing is said, as --weights says, or as it is in an export that holds
    /// quantized weights.
    #[arg(long, value_enum)]
    #[serde(deserialize_with = "chosen")]
    pub(super) embedding: Option<FloatWeights>,
    /// How weights are quantized [default: gptq for 4 bits, rtn for 8].
    #[arg(long, value_enum)]
    #[serde(deserialize_with = "chosen")]
    pub(super) method: Option<Quantization>,
    /// Give matrices that gain most by it 8 bits, as long as the file stays below this: 90MB.
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "target_size")]
    pub(super) target_size: Option<ByteSize>,
    /// The same, up to so many bits for each weight, scales included: 5.0.
    #[arg(long, value_name = "BITS", value_parser = bits, conflicts_with = "target_size")]
    #[serde(deserialize_with = "bits_of_weight")]
    pub(super) bits: Option<f64>,
    /// Fail if perplexity on held-out text rises by more, and say what would help: 2%.
    #[arg(long, value_name = "SHARE", value_parser = percent)]
    #[serde(deserialize_with = "increase")]
    pub(super) max_perplexity_increase: Option<f64>,
    /// Quantize the activations that 8 bits are coarsest for in two steps, for at most so much more arithmetic; 0% for none. If
    /// nothing is said it is 3% where a text runs through the model, and none elsewhere.
    #[arg(long, value_name = "SHARE", value_parser = percent)]
    #[serde(deserialize_with = "increase")]
    pub(super) refine_activations: Option<f64>,
    /// Merge a LoRA adapter that PEFT saved into the weights first, with a strength if it is not 1: DIR:0.5. Several are
    /// separated by commas.
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    pub(super) lora: Vec<LoraFolder>,
    /// Prune the layers first, as `niwaki prune` does.
    #[arg(long, value_enum, value_name = "METHOD")]
    #[serde(deserialize_with = "chosen")]
    pub(super) prune: Option<Method>,
    /// Share of the weights that become zero, or of the channels, heads or layers that go, above 0 and below 1. If nothing is
    /// said, 0.5 of weights and 0.1 of parts.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    #[serde(deserialize_with = "sparsity")]
    pub(super) sparsity: Option<f64>,
    /// Keep M of every N weights along the input instead, as in 2:4.
    #[arg(long, value_name = "M:N", conflicts_with = "sparsity")]
    #[serde(deserialize_with = "keep")]
    pub(super) keep: Option<Kept>,
    /// UTF-8 text like those the model will see: what is measured is measured on it.
    #[arg(long, value_name = "FILE")]
    pub(super) calibration: Option<PathBuf>,
    /// Tokens of the calibration text that are used, from all over it; 8192 if nothing is said. Memory grows with them: one
    /// row of the model's width each, and for parts three.
    #[arg(long, value_name = "N")]
    #[serde(deserialize_with = "tokens")]
    pub(super) calibration_tokens: Option<NonZeroUsize>,
}

impl Recipe {
    /// Reads a recipe file. Paths in it begin at its folder.
    ///
    /// # Errors
    /// When it cannot be read, or something in it is not understood: the line is told.
    pub(super) fn read(path: &Path) -> Result<Recipe, CommandError> {
        let read = || {
            let mut text = String::new();
            let mut file = File::open(path)?.take(RECIPE_BYTES_MAX + 1);
            file.read_to_string(&mut text)?;
            match text.len() as u64 > RECIPE_BYTES_MAX {
                true => Err(io::Error::other("it is too large to be a recipe")),
                false => Ok(text),
            }
        };
        let text = read().map_err(CommandError::read(path))?;
        let failed = |source| CommandError::Recipe {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let mut recipe: Recipe = toml::from_str(&text).map_err(failed)?;
        for (a, b, both) in [
            (
                "bits",
                "target-size",
                recipe.bits.is_some() && recipe.target_size.is_some(),
            ),
            (
                "sparsity",
                "keep",
                recipe.sparsity.is_some() && recipe.keep.is_some(),
            ),
        ] {
            if both {
                let message = format!("`{a}` and `{b}` say the same in two ways; give one of them");
                return Err(failed(toml::de::Error::custom(message)));
            }
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        if let Some(calibration) = &mut recipe.calibration {
            *calibration = folder.join(&calibration);
        }
        for adapter in &mut recipe.lora {
            adapter.begin_at(folder);
        }
        Ok(recipe)
    }

    /// These options and, where they say nothing, those of the preset.
    pub(super) fn with_preset(self) -> Recipe {
        let preset = self.preset.map(Preset::recipe).unwrap_or_default();
        self.over(preset)
    }

    /// These options and, where they say nothing, others. Of two that exclude each other one is said.
    pub(super) fn over(self, other: Recipe) -> Recipe {
        let (target_size, bits) = match (self.target_size, self.bits) {
            (None, None) => (other.target_size, other.bits),
            own => own,
        };
        let (sparsity, keep) = match (self.sparsity, self.keep) {
            (None, None) => (other.sparsity, other.keep),
            own => own,
        };
        Recipe {
            preset: self.preset.or(other.preset),
            weights: self.weights.or(other.weights),
            embedding: self.embedding.or(other.embedding),
            method: self.method.or(other.method),
            target_size,
            bits,
            max_perplexity_increase: self
                .max_perplexity_increase
                .or(other.max_perplexity_increase),
            refine_activations: self.refine_activations.or(other.refine_activations),
            lora: match self.lora.is_empty() {
                true => other.lora,
                false => self.lora,
            },
            prune: self.prune.or(other.prune),
            sparsity,
            keep,
            calibration: self.calibration.or(other.calibration),
            calibration_tokens: self.calibration_tokens.or(other.calibration_tokens),
        }
    }

    /// How much is pruned, and on which text importance is measured.
    pub(super) fn amount(&self) -> PruneAmount {
        PruneAmount {
            sparsity: self.sparsity,
            keep: self.keep,
            calibration: self.calibration.clone(),
            calibration_tokens: self.calibration_tokens,
        }
    }

    /// What weights become.
    pub(super) fn wishes(&self) -> Wishes {
        Wishes {
            weights: self.weights.map(Weights::from),
            embedding: self.embedding.map(Weights::from),
            usual: Usual::Codebook4,
        }
    }

    /// How large the bundle may be.
    pub(super) fn budget(&self) -> Option<Budget> {
        self.target_size
            .map(|size| Budget::SizeBytes(size.as_u64()))
            .or(self.bits.map(Budget::BitsPerWeight))
    }

    /// By which share arithmetic may grow for finer activations, if they are wanted for their own sake: they are asked for, or a
    /// text is given, and weights become integers.
    pub(super) fn refine_share(&self) -> Option<f64> {
        let float = |weights| matches!(weights, FloatWeights::F16 | FloatWeights::F32);
        let may = !self.weights.is_some_and(float) && self.calibration.is_some();
        self.refine_activations.or(may.then_some(REFINE_SHARE))
    }

    /// Whether a text has a say in how weights are quantized.
    pub(super) fn quantizes_by_text(&self) -> bool {
        let four_bits =
            |weights: FloatWeights| matches!(weights, FloatWeights::Codebook4 | FloatWeights::Int4);
        let chooses = self.target_size.is_some()
            || self.bits.is_some()
            || self.max_perplexity_increase.is_some()
            || self.refine_share().is_some_and(|share| share > 0.0);
        match self.method {
            Some(Quantization::Rtn) => chooses,
            Some(_) => true,
            None => {
                chooses
                    || self.weights.is_none_or(four_bits)
                    || self.embedding.is_some_and(four_bits)
            }
        }
    }

    /// What is said, by the names of the options, as they are given on the command line. Of a file its name alone: where it
    /// lies changes nothing, and is nobody's business who gets the bundle.
    pub(super) fn said(&self) -> BTreeMap<String, String> {
        let calibration = self.calibration.as_deref().map(file_name);
        let adapters: Vec<String> = self.lora.iter().map(ToString::to_string).collect();
        let said = [
            ("preset", self.preset.and_then(name)),
            ("weights", self.weights.and_then(name)),
            ("embedding", self.embedding.and_then(name)),
            ("method", self.method.and_then(name)),
            ("target-size", self.target_size.map(size)),
            ("bits", self.bits.map(|bits| bits.to_string())),
            (
                "max-perplexity-increase",
                self.max_perplexity_increase.map(|share| share.to_string()),
            ),
            (
                "refine-activations",
                self.refine_activations.map(|share| share.to_string()),
            ),
            ("lora", (!adapters.is_empty()).then(|| adapters.join(","))),
            ("prune", self.prune.and_then(name)),
            ("sparsity", self.sparsity.map(|share| share.to_string())),
            ("keep", self.keep.map(|kept| kept.to_string())),
            ("calibration", calibration),
            (
                "calibration-tokens",
                self.calibration_tokens.map(|tokens| tokens.to_string()),
            ),
        ];
        let said = said.into_iter();
        said.filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }

    /// The command that says the same of an export, wherever its output goes.
    pub(super) fn command(&self, export: &Path) -> String {
        // The folder that `.` is has a name too.
        let export = std::fs::canonicalize(export).unwrap_or_else(|_| export.to_owned());
        let mut command = format!(
            "niwaki build {} -o model.niwaki",
            quoted(&file_name(&export))
        );
        for (name, value) in self.said() {
            command.push_str(&format!(" --{name} {}", quoted(&value)));
        }
        command
    }
}

/// A path without its folders.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/%+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// The name of a choice on the command line.
fn name<T: ValueEnum>(value: T) -> Option<String> {
    Some(value.to_possible_value()?.get_name().to_owned())
}

/// A size, exactly.
fn size(size: ByteSize) -> String {
    match size.as_u64() {
        bytes if bytes % 1_000_000 == 0 => format!("{}MB", bytes / 1_000_000),
        bytes => format!("{bytes}B"),
    }
}

/// A value of a recipe, read as the command line reads it.
fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    let text = match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        _ => return Err(D::Error::custom("give a text or a number")),
    };
    parse(&text).map(Some).map_err(D::Error::custom)
}

fn chosen<'de, D: Deserializer<'de>, T: ValueEnum>(value: D) -> Result<Option<T>, D::Error> {
    parsed(value, |text| {
        let names = T::value_variants().iter().cloned().filter_map(name);
        let names = names.collect::<Vec<_>>().join(", ");
        T::from_str(text, false).map_err(|_| format!("there is no `{text}`; there are {names}"))
    })
}

fn target_size<'de, D: Deserializer<'de>>(value: D) -> Result<Option<ByteSize>, D::Error> {
    parsed(value, |text| {
        text.parse()
            .map_err(|_| "give a size, as in 90MB".to_owned())
    })
}

fn bits_of_weight<'de, D: Deserializer<'de>>(value: D) -> Result<Option<f64>, D::Error> {
    parsed(value, bits)
}

fn increase<'de, D: Deserializer<'de>>(value: D) -> Result<Option<f64>, D::Error> {
    parsed(value, percent)
}

fn sparsity<'de, D: Deserializer<'de>>(value: D) -> Result<Option<f64>, D::Error> {
    parsed(value, share)
}

fn tokens<'de, D: Deserializer<'de>>(value: D) -> Result<Option<NonZeroUsize>, D::Error> {
    let wanted = |_| "give a number of tokens, as in 8192".to_owned();
    parsed(value, |text| text.parse().map_err(wanted))
}

fn keep<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Kept>, D::Error> {
    parsed(value, str::parse)
}

/// Methods of quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Quantization {
    /// Round to nearest: a second, and no text.
    Rtn,
    /// The scale of each block with the least error, weighted by how strongly its inputs are driven.
    Search,
    /// GPTQ: later columns make up for what rounding earlier ones does wrong.
    Gptq,
    /// Try the others, and keep the one that costs least on held-out text.
    Auto,
}

impl Quantization {
    pub(super) fn quantizers(self) -> &'static [&'static dyn Quantizer] {
        match self {
            Quantization::Rtn => &[&RoundToNearest],
            Quantization::Search => &[&ScaleSearch],
            Quantization::Gptq => &[&Gptq::USUAL],
            Quantization::Auto => &[&Gptq::USUAL, &Gptq::CAUTIOUS, &ScaleSearch],
        }
    }
}

/// Bits for each weight.
fn bits(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(bits) if (4.0..=32.0).contains(&bits) => Ok(bits),
        _ => Err("give a number from 4 on, as in 5.0".to_owned()),
    }
}

/// A share: 2% or 0.02.
fn percent(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(number) => number.trim().parse::<f64>().map(|number| number / 100.0),
        None => text.parse(),
    };
    match share {
        Ok(share) if (0.0..=10.0).contains(&share) => Ok(share),
        _ => Err("give a share, as in 2%".to_owned()),
    }
}

/// Stored form of weights that the export holds as floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FloatWeights {
    /// 4-bit codes of 16 values that are fitted to each matrix, one scale per block of 32.
    Codebook4,
    /// 4 bits, symmetric, one scale per block of 32.
    Int4,
    /// 8 bits, symmetric, one scale per block of 32.
    Int8,
    /// Half precision.
    F16,
    /// Full precision, for comparisons.
    F32,
}

impl From<FloatWeights> for Weights {
    fn from(weights: FloatWeights) -> Weights {
        match weights {
            FloatWeights::Codebook4 => Weights::Codebook4,
            FloatWeights::Int4 => Weights::Int4,
            FloatWeights::Int8 => Weights::Int8,
            FloatWeights::F16 => Weights::F16,
            FloatWeights::F32 => Weights::F32,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A recipe of a file that says this, or why there is none.
    fn read(text: &str) -> Result<Recipe, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        Recipe::read(&path).map_err(|error| match error {
            CommandError::Recipe { source, .. } => source.to_string(),
            error => error.to_string(),
        })
    }

    #[test]
    fn what_is_said_nearer_holds() {
        let file = read("preset = \"phone\"\nmethod = \"search\"\nbits = 5").unwrap();
        assert_eq!(file.bits, Some(5.0));
        let flags = Recipe {
            method: Some(Quantization::Auto),
            ..Recipe::default()
        };
        let all = flags.clone().over(file.clone()).with_preset();
        assert_eq!(all.method, Some(Quantization::Auto), "the command line");
        assert_eq!(all.bits, Some(5.0), "the recipe");
        assert_eq!(all.weights, Some(FloatWeights::Codebook4), "the preset");
        assert_eq!(all.embedding, None);
        let other = Recipe {
            preset: Some(Preset::MaxQuality),
            ..Recipe::default()
        };
        let all = other.over(file).with_preset();
        assert_eq!(all.weights, Some(FloatWeights::Int8));
    }

    #[test]
    fn of_two_options_that_exclude_each_other_the_nearer_one_holds() {
        let flags = Recipe {
            target_size: Some(ByteSize(90_000_000)),
            preset: Some(Preset::Phone),
            ..Recipe::default()
        };
        let all = flags.with_preset();
        assert_eq!((all.bits, all.target_size.is_some()), (None, true));
        let error = read("sparsity = 0.5\nkeep = \"2:4\"").unwrap_err();
        assert!(error.contains("`sparsity` and `keep`"), "{error}");
    }

    #[test]
    fn what_is_not_understood_is_told_with_its_line() {
        for (text, line, words) in [
            ("bits = 5\nwieghts = \"int8\"", 2, "unknown field `wieghts`"),
            (
                "\nmethod = \"best\"",
                2,
                "there are rtn, search, gptq, auto",
            ),
            ("bits = 2", 1, "from 4 on"),
            ("bits = true", 1, "a text or a number"),
            ("preset = \"phone\"\n\nkeep = \"4:2\"", 3, "as in 2:4"),
            ("target-size = \"much\"", 1, "as in 90MB"),
            ("max-perplexity-increase = \"x\"", 1, "as in 2%"),
            ("calibration-tokens = 0", 1, "as in 8192"),
            ("output = \"model.niwaki\"", 1, "unknown field `output`"),
            ("bits = ", 1, "bits"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(&format!("line {line}")), "{text}: {error}");
            assert!(error.contains(words), "{text}: {error}");
        }
        let error = read(&"#".repeat(RECIPE_BYTES_MAX as usize + 1)).unwrap_err();
        assert!(error.contains("recipe.toml"), "{error}");
    }

    #[test]
    fn what_was_said_can_be_said_again() {
        let text = "preset = \"pi\"\nmax-perplexity-increase = \"2%\"\nprune = \"sparsegpt\"\nkeep = \"2:4\"\n\
                    calibration = \"my texts.txt\"\ncalibration-tokens = 99\ntarget-size = \"90.5MB\"";
        let recipe = read(text).unwrap().with_preset();
        assert!(recipe.calibration.as_deref().unwrap().is_absolute());
        let said = recipe.said();
        let told: Vec<String> = said
            .iter()
            .map(|(name, value)| format!("{name} = {}", toml::Value::from(value.as_str())))
            .collect();
        assert_eq!(read(&told.join("\n")).unwrap().with_preset().said(), said);
        assert_eq!(said["calibration"], "my texts.txt");
        let command = recipe.command(Path::new("/no/such/export"));
        assert!(
            command.starts_with("niwaki build export -o model.niwaki --calibration 'my texts.txt'"),
            "{command}"
        );
        assert!(command.contains("--target-size 90500000B"), "{command}");
    }
}
