//! How well a model predicts a text, and what a changed model does to the predictions of a reference.
//!
//! A text becomes one [`TokenStream`], the stream is cut into [`Window`]s that do not see each other, and in each window
//! tokens are predicted from those before them. [`evaluate`] measures one model; [`compare`] runs models beside a
//! reference, window by window, and says at every position how far apart their predictions are. Logits live no longer than
//! it takes to compare them.
//!
//! ```no_run
//! use niwaki::{Engine, OpenOptions};
//! use niwaki_convert::evaluate::{Beginnings, Cut, Subject, TokenStream, compare};
//!
//! let options = OpenOptions::default();
//! let (fp32, int4) = (Engine::open("fp32.niwaki", &options)?, Engine::open("int4.niwaki", &options)?);
//! let tokenizer = fp32.tokenizer().ok_or("no tokenizer")?;
//! let text = std::fs::read_to_string("text.txt")?;
//! let stream = TokenStream::encode(&text, tokenizer, Beginnings::of(tokenizer)?)?;
//! let (reference, model) = (Subject::new("fp32", &fp32), Subject::new("int4", &int4));
//! let found = compare(reference, &[model], stream.windows(&Cut::every(512)), || ())?;
//! println!("KL {:.4} nats a token", found[0].kl_nats().value);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod evaluation;
mod float_form;
mod logits_row;
mod measure;
mod statistics;
mod text;
mod window;

pub use error::EvaluateError;
pub use evaluation::{ComparedPosition, Comparison, Evaluation, ScoredPosition};
pub use float_form::write_float_form;
pub use measure::{Subject, compare, evaluate};
pub use statistics::Estimate;
pub use text::{Beginnings, TokenStream};
pub use window::{Cut, Window};
