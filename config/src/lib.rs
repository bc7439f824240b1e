//! How every YAML file that a user writes is read.
//!
//! A file becomes a [`Document`] of located nodes; a reader walks it by [`Value`] and [`Table`], and whatever
//! is wrong is written down as a [`Problem`] with file, line and key. The walk goes on after a problem, so that
//! one run names them all. This crate knows no schema: each crate reads its own files with it.
//!
//! Invariant: [`Document::decode`] returns a value only if no problem was written down.

pub mod changes;
mod document;
mod file;
mod patient;
mod problem;
mod value;

pub use changes::Changes;
pub use document::Document;
pub use file::{open_file, read_bytes, read_file};
pub use patient::Patient;
pub use problem::{Problem, Problems, nearest};
pub use value::{Table, Value};
