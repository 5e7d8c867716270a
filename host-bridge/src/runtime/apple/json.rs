//! What `container … --format json` and `inspect` say, in the form of each version.
//!
//! The form changed at 0.8, at 1.0 and, of `system status`, at 1.4.1, and no version is promised to keep it. So of each
//! answer only what is needed is read, where every known version has it; what is unknown is ignored, and a state that is
//! not known is never taken for "stopped".

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

/// A container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) state: State,
    pub(super) labels: HashMap<String, String>,
    /// Its first process is root's.
    pub(super) is_root: bool,
}

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Stopping,
    Stopped,
    /// The tool's own word, or one that this moat does not know.
    Unknown,
}

/// The service behind the tool.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) is_running: bool,
    /// In its own words.
    pub(super) status: String,
}

/// One architecture of an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Variant {
    /// As OCI calls it: `arm64`, `amd64`.
    pub(super) architecture: String,
    pub(super) entrypoint: Vec<String>,
    pub(super) cmd: Vec<String>,
    pub(super) user: String,
    pub(super) directory: String,
    pub(super) env: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawContainer {
    /// From 1.0 on: the id is at the top, the state in `status`.
    Nested {
        id: String,
        status: Nested,
        #[serde(default)]
        configuration: Value,
    },
    /// Before: the id is the configuration's, the state is `status` itself.
    Flat { status: String, configuration: Value },
}

#[derive(Deserialize)]
struct Nested {
    state: String,
}

/// The answer of `list --all --format json` and of `inspect`.
pub(super) fn containers(text: &str) -> serde_json::Result<Vec<Container>> {
    let raw: Vec<RawContainer> = serde_json::from_str(text)?;
    raw.into_iter().map(container).collect()
}

fn container(raw: RawContainer) -> serde_json::Result<Container> {
    let (id, state, configuration) = match raw {
        RawContainer::Nested { id, status, configuration } => (id, status.state, configuration),
        RawContainer::Flat { status, configuration } => {
            let id = configuration["id"].as_str().map(str::to_owned);
            let id = id.ok_or_else(|| serde::de::Error::missing_field("configuration.id"))?;
            (id, status, configuration)
        }
    };
    let labels = configuration["labels"].as_object().into_iter().flatten();
    let labels = labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
    let user = &configuration["initProcess"]["user"];
    let is_root = match user["raw"]["userString"].as_str() {
        Some(user) => user == "0:0",
        None => user["id"]["uid"] == 0,
    };
    Ok(Container { id, state: State::of(&state), labels, is_root })
}

impl State {
    fn of(text: &str) -> Self {
        match text {
            "running" => Self::Running,
            "stopping" => Self::Stopping,
            "stopped" => Self::Stopped,
            _ => Self::Unknown,
        }
    }
}

/// The answer of `system status --format json`: `status` is at the top in every version that has it.
pub(super) fn service(text: &str) -> serde_json::Result<Service> {
    #[derive(Deserialize)]
    struct Raw {
        status: String,
    }
    let Raw { status } = serde_json::from_str(text)?;
    Ok(Service { is_running: status == "running", status })
}

#[derive(Deserialize)]
struct RawImage {
    variants: Vec<RawVariant>,
}

#[derive(Deserialize)]
struct RawVariant {
    platform: RawPlatform,
    #[serde(default)]
    config: Value,
}

#[derive(Deserialize)]
struct RawPlatform {
    architecture: String,
    #[serde(default)]
    os: String,
}

/// The answer of `image inspect`: what the image has for Linux.
pub(super) fn variants(text: &str) -> serde_json::Result<Vec<Variant>> {
    let images: Vec<RawImage> = serde_json::from_str(text)?;
    let all = images.into_iter().flat_map(|image| image.variants);
    // Others are attestations, whose platform is "unknown".
    let for_linux = all.filter(|variant| matches!(variant.platform.os.as_str(), "linux" | ""));
    Ok(for_linux.map(variant).collect())
}

fn variant(RawVariant { platform, config }: RawVariant) -> Variant {
    // OCI's image configuration, with the part that is meant.
    let config = &config["config"];
    let words = |name: &str| -> Vec<String> {
        let words = config[name].as_array().into_iter().flatten();
        words.filter_map(|word| Some(word.as_str()?.to_owned())).collect()
    };
    let text = |name: &str| config[name].as_str().unwrap_or_default().to_owned();
    Variant {
        architecture: platform.architecture,
        entrypoint: words("Entrypoint"),
        cmd: words("Cmd"),
        user: text("User"),
        directory: text("WorkingDir"),
        env: words("Env"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    /// The forms as the sources of each version write them, shortened to what tells them apart.
    const OF_0_7: &str = r#"[{"configuration":{"id":"moat-1","image":{"reference":"a:1"},"labels":{"dev.moat.name":"moat-1"},
        "initProcess":{"user":{"raw":{"userString":"0:0"}}}},"networks":[{"address":"192.168.64.3/24","gateway":"192.168.64.1"}],"status":"running"}]"#;
    const OF_0_12: &str = r#"[{"configuration":{"id":"moat-1","labels":{"dev.moat.name":"moat-1"},"initProcess":{"user":{"id":{"uid":0,"gid":0}}}},
        "networks":[{"ipv4Address":"192.168.64.3/24","ipv4Gateway":"192.168.64.1","mtu":1280}],"startedDate":777034800.5,"status":"running"}]"#;
    const OF_1_2: &str = r#"[{"configuration":{"id":"moat-1","labels":{"dev.moat.name":"moat-1"},"creationDate":"2026-08-05T10:00:00Z",
        "initProcess":{"user":{"raw":{"userString":"0:0"}}},"publishedSockets":[{"containerPath":"/a","hostPath":"/b"}]},
        "id":"moat-1","status":{"networks":[{"ipv4Address":"192.168.65.3/24","variant":"reserved"}],"startedDate":"2026-08-05T10:00:01Z","state":"running"}}]"#;

    #[test_case(OF_0_7; "up to 0.7")]
    #[test_case(OF_0_12; "from 0.8 to 0.12")]
    #[test_case(OF_1_2; "from 1.0")]
    fn a_container_in_each_form(text: &str) {
        let labels = HashMap::from([("dev.moat.name".to_owned(), "moat-1".to_owned())]);
        let wanted = Container { id: "moat-1".into(), state: State::Running, labels, is_root: true };
        assert_eq!(containers(text).unwrap(), [wanted]);
    }

    #[test_case("running" => State::Running)]
    #[test_case("stopping" => State::Stopping)]
    #[test_case("stopped" => State::Stopped)]
    #[test_case("unknown" => State::Unknown)]
    #[test_case("paused" => State::Unknown; "a later one")]
    fn states(text: &str) -> State {
        let text = format!(r#"[{{"id":"a","status":{{"state":"{text}","more":[]}},"new":1}}]"#);
        containers(&text).unwrap()[0].state
    }

    #[test]
    fn only_id_and_state_are_needed() {
        assert_eq!(containers("[]").unwrap(), []);
        assert_eq!(containers(r#"[{"id":"a","status":{"state":"stopped"}}]"#).unwrap()[0].id, "a");
        for text in
            [r#"[{"id":"a"}]"#, r#"[{"status":{"state":"running"}}]"#, r#"[{"status":"running"}]"#, "{}", ""]
        {
            assert!(containers(text).is_err(), "{text}");
        }
        let odd =
            r#"[{"id":"a","status":{"state":"stopped"},"configuration":{"labels":{"n":1},"initProcess":7}}]"#;
        assert!(containers(odd).unwrap()[0].labels.is_empty());
    }

    #[test_case(r#"{"apiServerBuild":"release","apiServerVersion":"container-apiserver version 1.2.1","appRoot":"/a","installRoot":"/usr/local","status":"running"}"# => true; "flat")]
    #[test_case(r#"{"client":{"version":"1.4.1"},"host":{"cpus":8},"paths":{"appRoot":"/a"},"server":{"version":"1.4.1"},"status":"running"}"# => true; "nested, from 1.4.1")]
    #[test_case(r#"{"status":"not running"}"# => false; "stopped")]
    #[test_case(r#"{"status":"unregistered"}"# => false; "never started")]
    fn services(text: &str) -> bool {
        service(text).unwrap().is_running
    }

    #[test]
    fn an_image_has_a_variant_for_each_architecture() {
        let text = r#"[{"id":"ab","configuration":{"name":"docker.io/library/node:22"},"variants":[
            {"platform":{"os":"linux","architecture":"arm64","variant":"v8"},"digest":"sha256:1","size":9,
             "config":{"os":"linux","architecture":"arm64","rootfs":{},"config":{"Env":["A=b"],"Entrypoint":["e"],"Cmd":["c"],"User":"node","WorkingDir":"/app"}}},
            {"platform":{"os":"linux","architecture":"amd64"},"config":{"config":{"Cmd":null}}},
            {"platform":{"os":"unknown","architecture":"unknown"}}]}]"#;
        let [arm, amd] = &variants(text).unwrap()[..] else { panic!("two are for Linux") };
        assert_eq!(*amd, Variant { architecture: "amd64".into(), ..Variant::default() });
        let words = |word: &str| vec![word.to_owned()];
        let wanted = Variant {
            architecture: "arm64".into(),
            entrypoint: words("e"),
            cmd: words("c"),
            user: "node".into(),
            directory: "/app".into(),
            env: words("A=b"),
        };
        assert_eq!(*arm, wanted);
    }
}
