use niwaki_cli::{export::Export, lower::lower, onnx::OnnxModel};
fn main() {
    for dir in std::env::args().skip(1) {
        let t = std::time::Instant::now();
        let e = Export::open(std::path::Path::new(&dir)).unwrap();
        let m = OnnxModel::open(&e.model).unwrap();
        match lower(&m, &e.facts()) {
            Ok(l) => {
                println!(
                    "OK {dir} nodes {} layers {:?} ropes {} notes {:?} {:?}",
                    l.graph.nodes.len(),
                    l.graph.layers,
                    l.graph.ropes.len(),
                    l.notes,
                    t.elapsed()
                );
                if std::env::var("V").is_ok() {
                    for (i, n) in l.graph.nodes.iter().enumerate() {
                        println!("  {i} {:?} {:?} w{} {}", n.op, n.inputs, n.width, n.name);
                    }
                    for r in &l.graph.ropes {
                        println!("  {:?}", r);
                    }
                    for (i, p) in l.parts.matrices.iter().enumerate() {
                        println!(
                            "  m{i} {}x{} {:?} {}",
                            p.rows(),
                            p.cols(),
                            p.exact_format(),
                            p.name
                        );
                    }
                }
            }
            Err(e) => println!("FAIL {dir}: {e}"),
        }
    }
}
