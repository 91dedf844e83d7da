//! Help texts, as snapshots: read a difference before accepting it.
#![allow(clippy::unwrap_used)]

use niwaki_tests::niwaki;

/// The help of one command, or of all.
fn help(command: &[&str]) -> String {
    let mut niwaki = niwaki!();
    niwaki.args(command).arg("--help");
    let output = niwaki.output().unwrap();
    assert!(output.status.success(), "help is no failure");
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout).unwrap()
}

macro_rules! help_of {
    ($($name:ident: $($command:literal)?;)*) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!(help(&[$($command)?]));
        }
    )*};
}

help_of! {
    niwaki:;
    build: "build";
    prune: "prune";
    quantize: "quantize";
    pack: "pack";
    inspect: "inspect";
    eval: "eval";
    bench: "bench";
    run: "run";
    chat: "chat";
    logits: "logits";
    demo: "demo";
}
