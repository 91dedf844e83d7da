//! `niwaki inspect`: what is inside a model.

use super::error::CommandError;
use super::model::{self, EngineArgs};
use super::report::Report;
use super::{print, print_json};
use crate::terminal::{self, Table};
use clap::Args;
use niwaki::{Backing, MemoryPart, MemoryPlan};
use niwaki_bundle::graph::{Columns, Graph, InputKind, Op, RowSet};
use niwaki_bundle::{
    Bundle, ElementKind, GenerationDefaults, Manifest, MatrixEntry, ScaleKind, WeightTable,
};
use niwaki_convert::build::Weights;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Show what a model is made of.
///
/// Prints the manifest, the weights by format, the operators of the lowered graph, the nodes that did not
/// lower and why, and the memory that running takes, by part.
#[derive(Args)]
pub(super) struct InspectArgs {
    /// A .niwaki bundle, an export folder or an .onnx file.
    model: PathBuf,
    /// List every node of the lowered graph.
    #[arg(long)]
    nodes: bool,
    /// Print the quality report of a calibrated bundle, as Markdown or with --json.
    #[arg(long, conflicts_with = "nodes")]
    report: bool,
    /// Write the quality report as a page with plots, which needs nothing else, for a browser.
    #[arg(
        long,
        value_name = "FILE",
        requires = "report",
        conflicts_with = "json"
    )]
    html: Option<PathBuf>,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

/// Everything `--json` prints.
#[derive(Serialize)]
struct Inspection<'a> {
    model: &'a Path,
    manifest: &'a Manifest,
    has_tokenizer: bool,
    has_chat_template: bool,
    generation_defaults: &'a GenerationDefaults,
    graph: &'a Graph,
    weights: &'a WeightTable,
    memory: Memory,
    /// What would not be computed as the export computes it.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    notes: &'a [String],
}

/// Memory that running takes.
#[derive(Serialize)]
struct Memory {
    context_tokens: usize,
    file_bytes: u64,
    anonymous_bytes: u64,
    parts: Vec<MemoryLine>,
}

#[derive(Serialize)]
struct MemoryLine {
    name: &'static str,
    backing: &'static str,
    size_bytes: u64,
}

pub(super) fn run(args: &InspectArgs) -> Result<(), CommandError> {
    let model = match model::open_with(&args.model, None, &EngineArgs::default(), Weights::AsStored)
    {
        Ok(model) => model,
        Err(error) => return explain(args, error),
    };
    let engine = model.engine();
    if args.report {
        return report(args, engine.bundle());
    }
    let inspection = Inspection {
        model: &args.model,
        manifest: engine.manifest(),
        has_tokenizer: engine.tokenizer().is_some(),
        has_chat_template: engine.bundle().chat_template().is_some(),
        generation_defaults: engine.generation_defaults(),
        graph: engine.graph(),
        weights: engine.weights(),
        memory: Memory::new(engine.memory_plan()),
        notes: model.notes(),
    };
    if args.json {
        return print_json(&inspection);
    }
    let mut text = inspection.to_string();
    if args.nodes {
        text.push_str(&format!("\n{}", nodes(inspection.graph)));
    }
    print(&text)
}

/// The quality report.
fn report(args: &InspectArgs, bundle: &Bundle) -> Result<(), CommandError> {
    let report = Report::of(bundle, &args.model)?;
    match &args.html {
        Some(path) => report.write_page(path),
        None if args.json => print_json(report.stored()),
        None => print(&report.to_string()),
    }
}

/// What to say of a model that does not lower: the nodes that were left, if that is why.
fn explain(args: &InspectArgs, error: CommandError) -> Result<(), CommandError> {
    let Some(left) = error.not_lowered() else {
        return Err(error);
    };
    if args.json {
        return print_json(&serde_json::json!({ "model": args.model, "not_lowered": left }));
    }
    let mut table = Table::new(["operator", "node", "why it did not lower"])
        .words(1)
        .words(2);
    for left in left {
        table.row([
            left.operator.as_deref().unwrap_or("-"),
            &left.node,
            &left.reason,
        ]);
    }
    print(&format!(
        "{} does not lower completely.\n\n{table}",
        args.model.display()
    ))
}

impl Memory {
    fn new(plan: &MemoryPlan) -> Memory {
        let line = |part: &MemoryPart| MemoryLine {
            name: part.name,
            backing: match part.backing {
                Backing::File => "file",
                Backing::Anonymous => "anonymous",
            },
            size_bytes: part.size_bytes,
        };
        Memory {
            context_tokens: plan.context_tokens,
            file_bytes: plan.file_bytes(),
            anonymous_bytes: plan.anonymous_bytes(),
            parts: plan.parts.iter().map(line).collect(),
        }
    }
}

impl fmt::Display for Inspection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inspection {
            manifest, graph, ..
        } = self;
        let yes = |has| if has { "yes" } else { "no" };
        writeln!(f, "name           {}", manifest.name)?;
        writeln!(f, "architecture   {}", manifest.architecture)?;
        writeln!(f, "parameters     {}", terminal::count(manifest.parameters))?;
        writeln!(f, "weights        {}", manifest.weights)?;
        writeln!(
            f,
            "context        {} tokens",
            terminal::count(graph.context_tokens as u64)
        )?;
        for input in &graph.inputs {
            writeln!(f, "input          {}: {}", input.name, takes(input.kind))?;
        }
        for (output, rows) in graph.outputs.iter().zip(output_rows(graph)) {
            writeln!(f, "output         {}: {rows}", output.name)?;
        }
        writeln!(f, "tokenizer      {}", yes(self.has_tokenizer))?;
        writeln!(f, "chat template  {}", yes(self.has_chat_template))?;
        if !manifest.licences.is_empty() {
            writeln!(f, "licences       {}", manifest.licences.join(", "))?;
        }
        let provenance = &manifest.provenance;
        writeln!(f, "made by        {}", provenance.tool)?;
        for (option, value) in &provenance.options {
            writeln!(f, "  {option} = {value}")?;
        }
        for source in &provenance.sources {
            let hash: String = source.blake3.chars().take(16).collect();
            writeln!(
                f,
                "  from {}, {}, blake3 {hash}..",
                source.name,
                terminal::bytes(source.size_bytes)
            )?;
        }
        writeln!(f, "\n{}", weights(self.weights))?;
        writeln!(f, "{}", operators(graph))?;
        writeln!(f, "Every node of the export lowered.")?;
        for note in self.notes {
            writeln!(f, "note: {note}")?;
        }
        writeln!(f)?;
        write!(f, "{}", self.memory)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["memory", "backing", "size"]).words(1);
        for part in &self.parts {
            table.row([part.name, part.backing, &terminal::bytes(part.size_bytes)]);
        }
        table.row([
            "all that the file backs",
            "file",
            &terminal::bytes(self.file_bytes),
        ]);
        table.row([
            "all that counts against the app",
            "anonymous",
            &terminal::bytes(self.anonymous_bytes),
        ]);
        writeln!(
            f,
            "{table}with a context of {} tokens",
            terminal::count(self.context_tokens as u64)
        )
    }
}

/// Weights by how they are stored.
fn weights(weights: &WeightTable) -> Table {
    let mut formats: BTreeMap<String, (usize, u64, u64)> = BTreeMap::new();
    for matrix in &weights.matrices {
        let format = formats.entry(format_name(matrix)).or_default();
        format.0 += 1;
        format.1 += matrix.rows as u64 * matrix.cols as u64;
        format.2 += matrix.length;
    }
    let mut table = Table::new(["weights", "tensors", "values", "size"]);
    for (name, (tensors, values, size_bytes)) in formats {
        let cells = [
            name,
            tensors.to_string(),
            terminal::count(values),
            terminal::bytes(size_bytes),
        ];
        table.row(cells);
    }
    let values: u64 = weights.vectors.iter().map(|vector| vector.len as u64).sum();
    let tensors = weights.vectors.len().to_string();
    table.row([
        "f32 vectors".to_owned(),
        tensors,
        terminal::count(values),
        terminal::bytes(values * 4),
    ]);
    table
}

fn format_name(matrix: &MatrixEntry) -> String {
    let element = match matrix.element {
        ElementKind::F32 => return "f32".to_owned(),
        ElementKind::F16 => return "f16".to_owned(),
        ElementKind::Int8 => "int8",
        ElementKind::Int4 => "int4",
        ElementKind::Codebook4 => "codebook4",
    };
    let scale = match matrix.scale {
        Some(ScaleKind::F32) => ", f32 scales",
        Some(ScaleKind::F16) | None => "",
    };
    let zero_points = if matrix.zero_points {
        ", zero points"
    } else {
        ""
    };
    format!("{element}, block {}{scale}{zero_points}", matrix.block)
}

/// How often each operator occurs.
/// What an input is given.
fn takes(kind: InputKind) -> String {
    let count = |count: usize| terminal::count(count as u64);
    match kind {
        InputKind::TokenIds { count: ids } => format!("token ids below {}", count(ids)),
        InputKind::TokenTypes { count: types } => format!("token types below {}", count(types)),
        InputKind::Rows { width } => format!("rows of {}", count(width)),
    }
}

/// What each output is.
fn output_rows(graph: &Graph) -> Vec<String> {
    let row_sets = graph.row_sets().unwrap_or_default();
    let line = |node: usize| {
        let width = graph.nodes.get(node).map_or(0, |node| node.width);
        let rows = match row_sets.get(node) {
            Some(RowSet::Tokens) => "for every token",
            Some(RowSet::Wanted) => "for every token that is asked for",
            Some(RowSet::Sequences) => "for the whole text",
            None => "",
        };
        format!("{} numbers {rows}", terminal::count(width as u64))
    };
    graph
        .outputs
        .iter()
        .map(|output| line(output.node))
        .collect()
}

fn operators(graph: &Graph) -> Table {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in &graph.nodes {
        *counts.entry(describe(&node.op).0).or_default() += 1;
    }
    let mut table = Table::new(["operators", "nodes"]);
    for (name, count) in counts {
        table.row([name, count.to_string()]);
    }
    table
}

/// Every node with what it reads.
fn nodes(graph: &Graph) -> Table {
    let mut table = Table::new(["node", "operator", "width", "reads", "name"])
        .words(1)
        .words(3)
        .words(4);
    for (index, node) in graph.nodes.iter().enumerate() {
        let (operator, fields) = describe(&node.op);
        let columns = |columns: &Columns| {
            let end = columns.offset.saturating_add(columns.width);
            format!("{}[{}..{end}]", columns.node, columns.offset)
        };
        let mut reads: Vec<String> = node.inputs.iter().map(columns).collect();
        reads.extend(fields);
        table.row([
            index.to_string(),
            operator,
            node.width.to_string(),
            reads.join(" "),
            node.name.clone(),
        ]);
    }
    table
}

/// An operator's name and its fields, as the bundle stores them.
fn describe(op: &Op) -> (String, Vec<String>) {
    let Ok(serde_json::Value::Object(mut fields)) = serde_json::to_value(op) else {
        return (String::new(), Vec::new());
    };
    let name = fields
        .remove("op")
        .and_then(|name| name.as_str().map(str::to_owned));
    let fields = fields
        .iter()
        .map(|(field, value)| format!("{field}={value}"));
    (name.unwrap_or_default(), fields.collect())
}
