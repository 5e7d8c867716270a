//! The servers of the workspace's moat.yaml: is the file in order, is each grant there and bound to the server's host,
//! can the host be reached, what went wrong last?

use std::{io, path::Path, time::Duration};

use futures_util::future::join_all;
use tokio::{net::TcpStream, time::timeout};

use super::{Report, Section};
use crate::{
    config,
    control::api::Status,
    credentials::{Store, token_for},
    server::Server,
};

const HERE: Section = Section::Mcp;
/// Per server; all are tried at once.
const REACH: Duration = Duration::from_secs(5);

/// Returns the servers, for whoever knows more about them.
pub(super) fn look(workspace: &Path, store: &Store, report: &mut Report) -> Vec<Server> {
    let config = match config::load(workspace) {
        Ok(config) => config,
        Err(error) => {
            report.error(HERE, &error);
            return Vec::new();
        }
    };
    let Some(file) = &config.file else {
        let text = format!("no moat.yaml in {}", workspace.display());
        report.ok(HERE, text);
        return Vec::new();
    };
    for warning in &config.warnings {
        report.warning(HERE, warning.to_string());
    }
    if config.servers.is_empty() {
        report.ok(HERE, format!("{} names none", file.display()));
    }
    for server in &config.servers {
        one(server, store, report);
    }
    config.servers
}

/// Can a connection be made? Nothing is sent.
pub(super) async fn reach(servers: &[Server], report: &mut Report) {
    let tries = servers.iter().map(|server| timeout(REACH, connect(server)));
    for (server, outcome) in servers.iter().zip(join_all(tries).await) {
        let reason = match outcome {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} seconds", REACH.as_secs()),
        };
        let upstream = &server.upstream;
        let place = format!("{}:{}", upstream.host(), upstream.port());
        report
            .problem(HERE, format!("{}: {place} cannot be reached: {reason}", server.name))
            .remedy("Is the server running, and the URL in moat.yaml correct?");
    }
}

async fn connect(server: &Server) -> io::Result<()> {
    // A URL has IPv6 addresses in brackets, the resolver knows them without.
    let host = server.upstream.host().trim_start_matches('[').trim_end_matches(']');
    TcpStream::connect((host, server.upstream.port())).await.map(drop)
}

/// What went wrong last, in runs that are running, with servers of these names.
pub(super) fn last_errors(servers: &[Server], status: &Status, report: &mut Report) {
    for run in &status.runs {
        let known = run.servers.iter().filter(|theirs| servers.iter().any(|ours| ours.name == theirs.name));
        for server in known {
            if let Some(error) = &server.last_error {
                report
                    .warning(HERE, format!("{}: last error, in run {}: {error}", server.name, run.name))
                    .remedy(format!("See: moat trace --network {}", run.run));
            }
        }
    }
}

fn one(server: &Server, store: &Store, report: &mut Report) {
    let name = &server.name;
    match token_for(store, server) {
        Ok(None) => {
            report.ok(HERE, format!("{name}: needs no credential"));
        }
        Ok(Some(token)) => {
            report.ok(
                HERE,
                format!("{name}: grant '{}' is there, and bound to {}", token.grant(), token.host()),
            );
        }
        Err(error) => {
            let finding = report.error(HERE, &error);
            if !finding.text.contains(&format!("'{name}'")) {
                finding.text = format!("{name}: {}", finding.text);
            }
        }
    }
    if let Some(finding) = report.0.last_mut() {
        // Without the query, which may hold a key.
        finding.detail(format!("{:?}", server.upstream));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{env::Environment, home::Home};

    fn report(yaml: &str) -> Report {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("moat.yaml"), yaml).unwrap();
        let env = Environment::from([("MOAT_KEYRING_BACKEND", "file")]);
        let store = Store::open(&Home::at(dir.path().join("home")), &env, None);
        let mut report = Report::default();
        look(dir.path(), &store, &mut report);
        report
    }

    #[test]
    fn a_missing_grant_names_its_command() {
        let report =
            report("mcp:\n  - context7\n  - {name: local, url: 'http://localhost:3000/mcp?key=s3cr3t'}\n");
        assert!(report.is_broken());
        let text = report.text(true);
        assert!(text.contains("context7: grant 'mcp-context7' is not configured"), "{text}");
        assert!(text.contains("moat grant mcp context7"), "{text}");
        assert!(text.contains("local: needs no credential"), "{text}");
        assert!(!text.contains("s3cr3t"), "{text}");
    }

    #[tokio::test]
    async fn a_server_that_does_not_listen_is_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let server = |name: &str, address: std::net::SocketAddr| Server {
            name: name.parse().unwrap(),
            upstream: format!("http://{address}/mcp").try_into().unwrap(),
            inject: None,
            policy: None,
        };
        let servers = [server("here", listener.local_addr().unwrap()), server("gone", gone)];
        let mut report = Report::default();
        reach(&servers, &mut report).await;
        assert_eq!(report.0.len(), 1);
        assert!(report.0[0].text.starts_with("gone: 127.0.0.1:"), "{report:?}");
    }

    #[test]
    fn a_broken_file_is_a_problem_with_its_lines() {
        let text = report("mcp:\n  - contxt7\npolcy: x\n").text(false);
        assert!(text.contains("moat.yaml:2") && text.contains("moat.yaml:3"), "{text}");
    }
}
