//! The direction of dependencies, and what must not be in `moat` and the sidecar.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use moat_tests::{Outcome, Trouble, trouble::ensure};
use serde_json::Value;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::new("the_ends_do_not_know_each_other", &[], the_ends_do_not_know_each_other),
    Test::new("rust_only", &[], rust_only),
];

/// Names of packages, and what each needs to be built and run (without its tests).
struct Graph(BTreeMap<String, (String, Vec<String>)>);

impl Graph {
    fn read() -> Outcome<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["metadata", "--format-version", "1", "--offline", "--filter-platform"]);
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let output = command.arg(target).current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
        let metadata: Value = serde_json::from_slice(&output.stdout)?;
        let name_of: BTreeMap<_, _> = array(&metadata["packages"])
            .iter()
            .filter_map(|package| Some((package["id"].as_str()?, package["name"].as_str()?)))
            .collect();
        let mut graph = BTreeMap::new();
        for node in array(&metadata["resolve"]["nodes"]) {
            let normal = |dep: &&Value| array(&dep["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
            let needs = array(&node["deps"]).iter().filter(normal);
            let needs = needs.filter_map(|dep| dep["pkg"].as_str().map(ToOwned::to_owned)).collect();
            let id = node["id"].as_str().unwrap_or_default();
            let name = name_of.get(id).copied().unwrap_or_default();
            graph.insert(id.to_owned(), (name.to_owned(), needs));
        }
        Ok(Self(graph))
    }

    /// Everything that a package needs, itself included.
    fn closure(&self, package: &str) -> Outcome<BTreeSet<&str>> {
        let start = self.0.iter().find(|(_, (name, _))| name == package).map(|(id, _)| id.as_str());
        let mut open = vec![start.ok_or_else(|| Trouble::new(format!("no package {package}")))?];
        let (mut seen, mut names) = (BTreeSet::new(), BTreeSet::new());
        while let Some(id) = open.pop() {
            if let Some((name, needs)) = self.0.get(id).filter(|_| seen.insert(id)) {
                names.insert(name.as_str());
                open.extend(needs.iter().map(String::as_str));
            }
        }
        Ok(names)
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn the_ends_do_not_know_each_other() -> Outcome {
    let graph = Graph::read()?;
    let forbidden = [
        ("moat-host-bridge", "moat-sidecar"),
        ("moat-host-bridge", "moat-init"),
        ("moat-sidecar", "moat-host-bridge"),
        ("moat-init", "tokio"),
        ("moat-init", "hyper"),
        ("moat-shared", "moat-init"),
        ("moat-shared", "moat-host-bridge"),
    ];
    for (package, other) in forbidden {
        let needs = graph.closure(package)?;
        ensure(needs.len() > 3, || format!("the graph of {package} is empty: {needs:?}"))?;
        // Features unify in one graph: what moat-init has on its own is asked with its own resolution.
        ensure(!direct(&graph, package, other)?, || format!("{package} depends on {other}"))?;
    }
    let sidecar = graph.closure("moat-sidecar")?;
    ensure(sidecar.contains("moat-init") && sidecar.contains("moat-shared"), || {
        "the graph is wrong".to_owned()
    })
}

/// Does the package reach the other without passing through moat-shared, whose features others switch on?
fn direct(graph: &Graph, package: &str, other: &str) -> Outcome<bool> {
    let start = graph.0.iter().find(|(_, (name, _))| name == package).map(|(id, _)| id.as_str());
    let mut open = vec![start.ok_or_else(|| Trouble::new(format!("no package {package}")))?];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        let Some((name, needs)) = graph.0.get(id).filter(|_| seen.insert(id)) else { continue };
        if name == other {
            return Ok(true);
        }
        if name != "moat-shared" || package == "moat-shared" {
            open.extend(needs.iter().map(String::as_str));
        }
    }
    Ok(false)
}

fn rust_only() -> Outcome {
    let graph = Graph::read()?;
    for package in ["moat-host-bridge", "moat-sidecar"] {
        let needs = graph.closure(package)?;
        for unwanted in
            ["openssl-sys", "aws-lc-sys", "aws-lc-rs", "cmake", "bindgen", "native-tls", "libdbus-sys"]
        {
            ensure(!needs.contains(unwanted), || format!("{package} needs {unwanted}"))?;
        }
    }
    Ok(())
}
