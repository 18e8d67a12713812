//! Where objects come from: a directory of manifests, or an API server. Every source speaks `objects::Event`, so that all
//! feed one index.

pub mod directory;
pub mod files;
mod kept;
pub mod kube;
pub mod objects;
pub mod yaml;

use files::FileProblem;
use objects::{Event, Key};

/// What is different since the last one. The first one is complete.
#[derive(Debug)]
pub struct Batch {
    /// Objects that are new, different or gone.
    pub events: Vec<Event>,
    /// Everything that is wrong with manifests now.
    pub problems: Vec<FileProblem>,
    /// Every object of an API server that can't be understood now.
    pub misunderstood: Vec<Misunderstood>,
}

/// An object of an API server that can't be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misunderstood {
    /// Which.
    pub key: Key,
    /// Why, how to mend it, and what holds meanwhile.
    pub message: String,
}
