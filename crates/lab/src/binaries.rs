//! Finding our own executables beside the one that runs. They are built by cargo, never by the lab.

use std::path::{Path, PathBuf};

use crate::error::{LabError, cannot};

/// The directory of executables: `given`, or cargo's target directory of the running executable.
#[derive(Clone, Debug)]
pub(crate) struct Binaries(PathBuf);

impl Binaries {
    pub(crate) fn locate(given: Option<&Path>) -> Result<Self, LabError> {
        if let Some(dir) = given {
            return Ok(Self(dir.to_owned()));
        }
        let own = std::env::current_exe().map_err(cannot("find the running executable"))?;
        Ok(Self(beside(&own)))
    }

    /// The path of an executable of this workspace; `package` is what cargo builds it from.
    pub(crate) fn path(&self, name: &str, package: &str) -> Result<PathBuf, LabError> {
        let path = self.0.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let build = match self.0.file_name().and_then(|name| name.to_str()) {
            Some("release") => format!("cargo build --release -p {package} --bins"),
            Some("dist") => format!("scripts/dist --bin {name}"),
            _ => format!("cargo build -p {package} --bins"),
        };
        Err(LabError::MissingBinary { name: name.into(), dir: self.0.clone(), build })
    }
}

/// Tests run from `target/<profile>/deps`, examples from `target/<profile>/examples`, binaries from `target/<profile>`.
fn beside(executable: &Path) -> PathBuf {
    let dir = executable.parent().unwrap_or(Path::new("/"));
    let below_profile = dir.ends_with("deps") || dir.ends_with("examples");
    if below_profile { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_looked_for_in_the_profile_directory() {
        for own in ["/t/debug/deps/x-1f", "/t/debug/airglow", "/t/debug/examples/y"] {
            assert_eq!(beside(Path::new(own)), Path::new("/t/debug"));
        }
    }

    #[test]
    fn a_missing_executable_names_the_command_that_builds_it() {
        for (profile, build) in [
            ("debug", "cargo build -p ztunnel --bins"),
            ("release", "cargo build --release -p ztunnel --bins"),
            ("dist", "scripts/dist --bin ztunnel"),
        ] {
            let dir = Path::new("/none").join(profile);
            let error = Binaries(dir).path("ztunnel", "ztunnel").expect_err("absent");
            let expected = format!(
                "the executable `ztunnel` is not in /none/{profile}; \
                 build it with `{build}`"
            );
            assert_eq!(error.to_string(), expected);
        }
    }
}
