//! The plugin's side of ztunnel's node API, one question and one answer in a bounded wait; and the files that ztunnel leaves
//! for when it is away.
//!
//! What an answer means for a pod is `decide`'s.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::call::Sandbox;
use crate::decide::{Answer, LastKnown, Listed};

/// ztunnel answers an announcement within 30 s, with an error if need be.
const ANSWER_WITHIN: Duration = Duration::from_secs(35);
/// A few hundred pods with their messages.
const MAX_ANSWER: u64 = 1024 * 1024;

/// Announces a pod.
pub(crate) fn add(run_dir: &Path, sandbox: &Sandbox) -> Answer {
    let request = json!({"add": {
        "uid": sandbox.uid,
        "namespace": sandbox.namespace,
        "name": sandbox.name,
        "sandbox_id": sandbox.sandbox_id,
        "netns": sandbox.netns,
        "addresses": sandbox.addresses,
    }});
    let answer = match ask(run_dir, &request) {
        Ok(answer) => answer,
        Err(problem) => return Answer::None(problem),
    };
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    match answer["captured"].as_bool() {
        Some(captured) => Answer::Added { state: text("state"), captured, message: text("message") },
        None => Answer::None(format!("ztunnel's answer has another form: {answer}")),
    }
}

/// Says that a pod's sandbox is gone.
pub(crate) fn delete(run_dir: &Path, uid: &str, sandbox_id: &str) -> Result<(), String> {
    ask(run_dir, &json!({"delete": {"uid": uid, "sandbox_id": sandbox_id}})).map(drop)
}

/// All pods that ztunnel knows.
pub(crate) fn list(run_dir: &Path) -> Result<Vec<Listed>, String> {
    let answer = ask(run_dir, &json!({"list": {}}))?;
    serde_json::from_value(answer["pods"].clone())
        .map_err(|error| format!("ztunnel's answer has another form: {error}"))
}

/// What ztunnel knew of the mesh when it last wrote it down.
pub(crate) fn last_known(run_dir: &Path) -> Result<LastKnown, String> {
    let path = run_dir.join("last-known.json");
    let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Removes what ztunnel would remember of a sandbox, because no ztunnel is there to be told.
pub(crate) fn forget(run_dir: &Path, uid: &str, sandbox_id: &str) {
    // It becomes a file name; ztunnel would never have taken another.
    if uid.is_empty() || !uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
        return;
    }
    let path = run_dir.join("sandboxes").join(format!("{uid}.json"));
    let remembered = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    if remembered.is_some_and(|remembered| remembered["sandbox_id"] == sandbox_id) {
        // If it stays, ztunnel finds out that the sandbox is gone.
        let _ = fs::remove_file(path);
    }
}

fn ask(run_dir: &Path, request: &Value) -> Result<Value, String> {
    let socket = run_dir.join("node.sock");
    let answer = exchange(&socket, request)
        .map_err(|error| format!("ztunnel does not answer at {} ({error})", socket.display()))?;
    match answer["error"].as_str() {
        None => Ok(answer),
        Some(error) => Err(format!("ztunnel says: {error}")),
    }
}

fn exchange(socket: &Path, request: &Value) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
    }
    serde_json::from_str(&line).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    fn sandbox() -> Sandbox {
        Sandbox {
            uid: "a-1".to_owned(),
            namespace: "shop".to_owned(),
            name: "cart-1".to_owned(),
            sandbox_id: "f00".to_owned(),
            netns: "/var/run/netns/cni-1".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    fn answered(reply: &'static str) -> (Value, Answer) {
        let folder = tempfile::tempdir().unwrap();
        let server = UnixListener::bind(folder.path().join("node.sock")).unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
            serde_json::from_str(&line).unwrap()
        });
        let answer = add(folder.path(), &sandbox());
        (thread.join().unwrap(), answer)
    }

    #[test]
    fn an_announcement_has_all_that_the_runtime_knows() {
        let (asked, answer) =
            answered("{\"ok\":true,\"state\":\"failed\",\"captured\":true,\"message\":\"m\"}\n");
        let expected = json!({"add": {
            "uid": "a-1", "namespace": "shop", "name": "cart-1", "sandbox_id": "f00",
            "netns": "/var/run/netns/cni-1", "addresses": ["10.0.0.1"],
        }});
        assert_eq!(asked, expected);
        let told = Answer::Added { state: "failed".to_owned(), captured: true, message: "m".to_owned() };
        assert_eq!(answer, told);
    }

    #[test]
    fn what_is_no_answer_is_said() {
        for (reply, expected) in [
            ("{\"error\":\"it is full\"}\n", "it is full"),
            ("{\"ok\":true}\n", "another form"),
            ("{\"ok\":", "does not answer"),
            ("", "closed the connection"),
        ] {
            let (_, answer) = answered(reply);
            assert!(matches!(&answer, Answer::None(why) if why.contains(expected)), "{reply:?}: {answer:?}");
        }
        let answer = add(Path::new("/nowhere"), &sandbox());
        assert!(matches!(&answer, Answer::None(why) if why.contains("/nowhere/node.sock")), "{answer:?}");
    }

    #[test]
    fn only_the_sandbox_that_has_ended_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sandboxes/a-1.json");
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, "{\"uid\":\"a-1\",\"sandbox_id\":\"second\"}").unwrap();
        forget(folder.path(), "a-1", "first");
        forget(folder.path(), "../sandboxes/a-1", "second");
        assert!(path.exists());
        forget(folder.path(), "a-1", "second");
        assert!(!path.exists());
    }
}
