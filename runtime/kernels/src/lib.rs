//! Kernels of a transformer decoder with the same bits on every CPU.
//!
//! Quantized and float matrix products, normalisation, rotary embedding, activations and attention over
//! a paged KV cache, for scalar code, x86-64 and aarch64, chosen at run time. The definition of the
//! arithmetic is `docs/arithmetic.md`; the readable form of it is the generic code here, run on the
//! 16 lanes of `scalar.rs`. No files, no sockets, no model formats.
//!
//! ```
//! use niwaki_kernels::{Isa, Kernels, Matrix, MatrixFormat, QuantizedRows, Rows, RowsMut, ThreadPool};
//! use std::sync::Arc;
//!
//! let packed = niwaki_kernels::pack_float(MatrixFormat::F32, 2, 3, &[1., 2., 3., 4., 5., 6.])?;
//! let matrix = Matrix::new(MatrixFormat::F32, 2, 3, &packed)?;
//! let kernels = Kernels::new(Isa::detect(), Arc::new(ThreadPool::new(2)))?;
//! let mut out = [0.0; 2];
//! kernels.matmul(
//!     &matrix,
//!     &Rows::contiguous(&[1., 0., 1.], 1, 3),
//!     None,
//!     &mut QuantizedRows::new(),
//!     &mut RowsMut::contiguous(&mut out, 1, 2),
//! );
//! assert_eq!(out, [4., 10.]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod attention;
mod codebook;
mod dispatch;
mod format;
mod functions;
mod isa;
mod kernels;
mod kv;
mod lanes;
mod matmul;
mod norm;
pub mod pack;
mod pool;
mod pooling;
mod quantize;
mod quantized;
mod rope;
mod rounding;
mod rows;
mod scalar;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use attention::{AttentionOptions, AttentionScratch};
pub use codebook::Codebook;
pub use format::{
    ACTIVATION_BLOCK, Element, LayoutError, MAX_REFINED, Matrix, MatrixFormat, ROWS, ScaleType,
};
pub use functions::Activation;
pub use isa::Isa;
pub use kernels::{Kernels, MatmulInput, Residual, UnsupportedIsa};
pub use kv::{KvElement, KvFormat, KvPage, PAGE_TOKENS};
pub use norm::Norm;
pub use pack::{pack_float, pack_int};
pub use pool::ThreadPool;
pub use pooling::mean_row;
pub use quantized::QuantizedRows;
pub use rope::{PairLayout, RopeTables, rope_angles};
pub use rounding::{round_dynamic, round_static};
pub use rows::{Rows, RowsMut};
