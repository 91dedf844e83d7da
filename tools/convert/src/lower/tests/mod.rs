//! Lowering of small graphs built by hand: what is recognised, what is refused, and that nothing makes it crash.

mod attention;
mod columns;
mod damaged;
mod decoder;
