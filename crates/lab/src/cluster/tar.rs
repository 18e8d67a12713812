//! Writing tar archives (POSIX ustar) of files in memory. The same files give the same bytes: no times, no owners.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

const BLOCK: usize = 512;

/// What a ustar header has room for.
const NAME: usize = 100;

/// An archive that grows.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<PathBuf>,
}

impl Archive {
    /// Adds a file, and the directories above it that are not there yet. A leading slash is dropped.
    ///
    /// # Panics
    /// When the path has more than 100 bytes or parts like `..`: paths here are ours.
    pub(crate) fn file(&mut self, path: &Path, contents: &[u8], mode: u32) {
        let path: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        for above in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            if !above.as_os_str().is_empty() && self.directories.insert(above.to_owned()) {
                self.header(&format!("{}/", above.display()), 0, 0o755, b'5');
            }
        }
        self.header(&path.display().to_string(), contents.len(), mode, b'0');
        self.bytes.extend_from_slice(contents);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    /// The archive with its end mark: two empty blocks.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    fn header(&mut self, name: &str, size: usize, mode: u32, kind: u8) {
        assert!(name.len() <= NAME, "`{name}` is too long for a tar header");
        let mut header = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\0"); // owner: root
        put(116, b"0000000\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"00000000000\0"); // changed in 1970
        put(148, b"        "); // the sum counts its own place as spaces
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_machines_own_tar_reads_it() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b/tool"), b"0123456789", 0o755);
        archive.file(Path::new("a/b/empty"), b"", 0o644);
        let mut tar = Command::new("tar")
            .args(["-tv", "--numeric-owner", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar");
        tar.stdin.take().expect("piped").write_all(&archive.finish()).expect("written");
        let output = tar.wait_with_output().expect("its end");
        assert!(output.status.success(), "{output:?}");
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        let fields = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            format!("{} {} {} {}", words[0], words[1], words[2], words[5])
        };
        let expected = [
            "drwxr-xr-x 0/0 0 a/",
            "drwxr-xr-x 0/0 0 a/b/",
            "-rwxr-xr-x 0/0 10 a/b/tool",
            "-rw-r--r-- 0/0 0 a/b/empty",
        ];
        assert_eq!(listed.lines().map(fields).collect::<Vec<_>>(), expected);
    }
}
