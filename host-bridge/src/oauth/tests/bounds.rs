//! How much of an answer is taken, for how long, and from which addresses (O11 to O15).

use std::time::Duration;

use test_case::test_case;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, timeout},
};
use url::Url;

use crate::oauth::{
    guard::Guard,
    http::{Answer, Limits, NoAnswer},
    json,
    refresh::Class,
    testing::{Place, Said, Site, get},
};

fn guard(server: &str) -> Guard {
    Guard::of(Url::parse(server).ok().as_ref(), false)
}

fn local() -> Guard {
    guard("http://127.0.0.1:1/mcp")
}

/// Answers one connection with these bytes, and then does as it is told.
async fn raw(head: &'static str, then: Then) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener.into_std().unwrap()).unwrap();
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut request = [0; 4096];
            let _read = stream.read(&mut request).await;
            let _written = stream.write_all(head.as_bytes()).await;
            match then {
                Then::Close => {}
                Then::Silence => drop(stream.read(&mut request).await),
                Then::ForEver => while stream.write_all(&[b' '; 64 * 1024]).await.is_ok() {},
            }
        });
    });
    url
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Close,
    Silence,
    ForEver,
}

async fn ask(url: &str, guard: Guard, limits: Limits) -> Result<Answer, NoAnswer> {
    Place::new().http.send(get(url), guard, limits).await
}

#[tokio::test]
async fn o14_a_body_without_an_end_is_cut_off() {
    let url = raw("HTTP/1.1 200 OK\r\n\r\n{\"a\":", Then::ForEver).await;
    let started = Instant::now();
    let answer = ask(&url, local(), Limits::METADATA).await.unwrap();
    assert!(answer.body.is_empty() && json::object(&answer).is_none());
    assert!(started.elapsed() < Duration::from_secs(4), "it was not the size that ended it");
}

#[test_case(256 * 1024, Limits::METADATA => true; "metadata of 256 KiB")]
#[test_case(256 * 1024 + 1, Limits::METADATA => false; "a byte more")]
#[test_case(10 << 20, Limits::METADATA => false; "10 MiB")]
#[test_case(64 * 1024, Limits::TOKENS => true; "tokens of 64 KiB")]
#[test_case(64 * 1024 + 1, Limits::TOKENS => false; "tokens and a byte more")]
#[tokio::test]
async fn o14_sizes(size: usize, limits: Limits) -> bool {
    let site = Site::open(move |_, _| {
        let mut body = b"{}".to_vec();
        body.resize(size, b' ');
        Said::body(200, body)
    })
    .await;
    let answer = ask(&format!("{}/", site.origin), local(), limits).await.unwrap();
    json::object(&answer).is_some()
}

#[tokio::test]
async fn o14_what_is_packed_is_not_read() {
    let site = Site::open(|_, _| Said::body(200, b"{}".to_vec()).with("content-encoding", "gzip")).await;
    let answer = ask(&format!("{}/", site.origin), local(), Limits::METADATA).await.unwrap();
    assert!(json::object(&answer).is_none());
}

#[test_case("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"a\"", Then::Close => NoAnswer::Lost(Class::Connection); "half a body")]
#[test_case("HTTP/1.1 200", Then::Close => NoAnswer::Lost(Class::Connection); "half a head")]
#[test_case("", Then::Close => NoAnswer::Lost(Class::Connection); "nothing")]
#[test_case("", Then::Silence => NoAnswer::Lost(Class::Timeout); "o15 silence")]
#[tokio::test]
async fn a6_an_answer_that_does_not_come_whole_is_lost(head: &'static str, then: Then) -> NoAnswer {
    let url = raw(head, then).await;
    let limits = Limits { time: Duration::from_millis(300), ..Limits::TOKENS };
    ask(&url, local(), limits).await.unwrap_err()
}

#[tokio::test]
async fn a6_nobody_there_means_that_nothing_was_sent() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = ask(&format!("http://{free}/"), local(), Limits::TOKENS).await.unwrap_err();
    assert_eq!(refused, NoAnswer::NotSent(Class::Connection));
}

// The name is fine; what it resolves to is not.
#[test_case("https://mcp.example.com/mcp", "https" => NoAnswer::NotSent(Class::ForbiddenAddress); "o12 a public server's name leads to loopback")]
#[test_case("https://10.0.0.1/mcp", "https" => NoAnswer::NotSent(Class::ForbiddenAddress); "o13 private is not loopback")]
#[test_case("https://mcp.example.com/mcp", "http" => NoAnswer::NotSent(Class::ForbiddenAddress); "o11 plain http")]
#[tokio::test]
async fn o12_an_address_is_checked_when_its_name_is_resolved(server: &str, scheme: &str) -> NoAnswer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("{scheme}://localhost:{}/", listener.local_addr().unwrap().port());
    let refused = ask(&url, guard(server), Limits::METADATA).await.unwrap_err();
    let came = timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(came.is_err(), "it was connected to");
    refused
}
