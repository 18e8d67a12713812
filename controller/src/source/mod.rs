//! Where objects come from: a directory of manifests. Every source speaks `objects::Event`, so that all feed one index.

pub mod directory;
pub mod files;
mod kept;
pub mod objects;
pub mod yaml;
