//! Container images FROM scratch, as OCI archives: one layer of given files, written without a registry or a daemon.
//!
//! The archive is an image layout (OCI image specification 1.1) in a tar file, which `ctr images import` and `docker load` read.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::cluster::tar::Archive;
use crate::error::{LabError, cannot};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What an image will be made of.
///
/// ```no_run
/// # fn main() -> Result<(), lab::LabError> {
/// let image = lab::Image::new("airglow.test/tool:1").file("/tool", "target/debug/tool").with_libraries()?;
/// image.entrypoint(["/tool"]).user("65532").write("tool.tar".as_ref())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    files: Vec<(PathBuf, PathBuf)>,
    entrypoint: Vec<String>,
    user: String,
    env: Vec<String>,
}

impl Image {
    /// An image without files. The name is complete: registry, path and tag.
    pub fn new(name: &str) -> Self {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/".to_owned();
        Self {
            name: name.to_owned(),
            files: Vec::new(),
            entrypoint: Vec::new(),
            user: String::new(),
            env: vec![path],
        }
    }

    /// Puts a file of this machine into the image, with its mode; directories above it are made.
    #[must_use]
    pub fn file(mut self, at: impl Into<PathBuf>, from: impl Into<PathBuf>) -> Self {
        self.files.push((at.into(), from.into()));
        self
    }

    /// Puts in the shared libraries that its files ask for so far, where the dynamic linker of this machine finds them.
    pub fn with_libraries(mut self) -> Result<Self, LabError> {
        let mut libraries: Vec<PathBuf> = Vec::new();
        for (_, from) in &self.files {
            let output = Command::new("ldd").arg(from).output().map_err(cannot("run ldd"))?;
            // ldd fails for what is linked statically, which needs nothing.
            libraries.extend(libraries_in(&String::from_utf8_lossy(&output.stdout)));
        }
        libraries.sort();
        libraries.dedup();
        self.files.extend(libraries.into_iter().map(|path| (path.clone(), path)));
        Ok(self)
    }

    /// What a container runs unless its pod says otherwise.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// The user that it runs as; a number, because `runAsNonRoot` accepts no name. Root when not set.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// Sets an environment variable. PATH is set already.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Its complete name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes the archive.
    pub fn write(&self, to: &Path) -> Result<(), LabError> {
        let layer = self.layer()?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Env": self.env, "Entrypoint": self.entrypoint, "User": self.user},
            "rootfs": {"type": "layers", "diff_ids": [name_of(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described(CONFIG, &config),
            "layers": [described(LAYER, &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut listed = described(MANIFEST, &manifest);
        // The first is what containerd names the image by, the second what others do.
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        listed["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
        let index = json!({"schemaVersion": 2, "manifests": [listed]}).to_string();
        let mut archive = Archive::default();
        archive.file(Path::new("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644);
        archive.file(Path::new("index.json"), index.as_bytes(), 0o644);
        for blob in [&config, &manifest, &layer] {
            let name = name_of(blob).replacen(':', "/", 1);
            archive.file(&Path::new("blobs").join(name), blob, 0o644);
        }
        fs::write(to, archive.finish()).map_err(cannot(format!("write {}", to.display())))
    }

    fn layer(&self) -> Result<Vec<u8>, LabError> {
        let mut archive = Archive::default();
        for (at, from) in &self.files {
            let read = || io::Result::Ok((fs::read(from)?, fs::metadata(from)?.permissions().mode()));
            let (bytes, mode) = read().map_err(cannot(format!("read {}", from.display())))?;
            archive.file(at, &bytes, mode & 0o777);
        }
        Ok(archive.finish())
    }
}

fn described(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": name_of(bytes), "size": bytes.len()})
}

fn name_of(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    let digits: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// Go's name of this machine, which OCI uses.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Absolute paths in what ldd prints: after `=>`, or in front for the linker itself.
fn libraries_in(said: &str) -> impl Iterator<Item = PathBuf> {
    said.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let said = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld.so (0x3)\n\
                    \tstatically linked\n";
        let found: Vec<_> = libraries_in(said).collect();
        assert_eq!(found, [Path::new("/lib/x/libc.so.6"), Path::new("/lib64/ld.so")]);
    }

    #[test]
    fn a_blob_is_named_by_its_sha256() {
        let expected = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(name_of(b""), expected);
    }
}
