//! What both ends of the tunnel read: hello, plan, event boundaries, and the scan for a request's id.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_shared::{
    hello::{Hello, negotiate},
    plan::Startup,
    rpc::scan::Scanner,
    sse::Boundaries,
};

fuzz_target!(|data: &[u8]| {
    let Some((&size, data)) = data.split_first() else { return };
    let size = usize::from(size % 16) + 1;
    if let Ok(hello) = serde_json::from_slice::<Hello>(data) {
        let ours = Hello::ours();
        if let Ok(protocol) = negotiate(&hello, &ours) {
            assert!(protocol <= hello.protocol && protocol <= ours.protocol);
            assert!(protocol >= hello.oldest && protocol >= ours.oldest);
        }
    }
    if let Ok(startup) = serde_json::from_slice::<Startup>(data) {
        let text = serde_json::to_vec(&startup).expect("it was read");
        let again: Startup = serde_json::from_slice(&text).expect("it was written");
        assert!(again.plan == startup.plan);
    }
    boundaries(data, size);
    scanner(data, size);
});

fn boundaries(data: &[u8], size: usize) {
    let (mut whole, mut parts) = (Boundaries::default(), Boundaries::default());
    let end = whole.push(data);
    let mut last = None;
    for (index, chunk) in data.chunks(size).enumerate() {
        last = parts.push(chunk).map(|end| index * size + end).or(last);
    }
    assert_eq!((end, whole.between_events()), (last, parts.between_events()));
    let closing = whole.closing();
    whole.push(closing);
    assert!(whole.between_events());
}

fn scanner(data: &[u8], size: usize) {
    let (mut whole, mut parts) = (Scanner::default(), Scanner::default());
    whole.push(data);
    data.chunks(size).for_each(|chunk| parts.push(chunk));
    assert_eq!((whole.id(), whole.method()), (parts.id(), parts.method()));
    // Where the text is JSON without a key twice, the id is that of any other reader.
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let once = serde_json::to_vec(&value).expect("it was read");
    let mut scanner = Scanner::default();
    scanner.push(&once);
    if let Some(id) = scanner.id() {
        assert_eq!(serde_json::from_str::<serde_json::Value>(id.as_str()).expect("a token"), value["id"]);
    }
}
