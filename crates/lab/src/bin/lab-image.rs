//! Writes a container image FROM scratch as an OCI archive, without a daemon: what `make images` runs.
//!
//! `lab-image NAME ARCHIVE USER /PATH=FILE...`: the files of this machine at these paths with the libraries that they ask for,
//! run as this user, the first one the entry point. Builds nothing.

use std::path::Path;
use std::process::ExitCode;

use lab::Image;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, archive, user, files @ ..] = args.as_slice() else { return usage() };
    let files: Option<Vec<(&str, &str)>> = files.iter().map(|file| file.split_once('=')).collect();
    let Some(files) = files.filter(|files| !files.is_empty()) else { return usage() };
    let image = files.iter().fold(Image::new(name), |image, (at, from)| image.file(*at, *from));
    let written = image
        .with_libraries()
        .and_then(|image| image.entrypoint([files[0].0]).user(user).write(Path::new(archive)));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-image: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: lab-image NAME ARCHIVE USER /PATH=FILE...");
    ExitCode::from(2)
}
