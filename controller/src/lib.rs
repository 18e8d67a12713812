//! The control plane: what the source says (`source`) becomes what the mesh is (`index`, pure) and is handed to the nodes
//! (`serve`): discovery, certificates, and who is to be enrolled.
//!
//! Owns no data path: with the controller stopped, nodes go on with what they hold.

pub mod admin;
pub mod app;
pub mod config;
pub mod definitions;
pub mod hub;
pub mod index;
pub mod proofs;
pub mod root;
pub mod serve;
pub mod source;
pub mod writes;
