//! Why there is no grant, and what a person can do about it.

use moat_shared::grant::GrantName;

use crate::oauth::{
    client::ClientError, device::DeviceError, discovery::DiscoveryError, guard::Forbidden, refresh::Class,
    token::Refused,
};

/// Why nothing was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GrantError {
    #[error("{0}")]
    Discovery(DiscoveryError),
    #[error("{what} {why}")]
    Url { what: &'static str, why: Forbidden },
    #[error(transparent)]
    Client(ClientError),
    #[error("the port for the sign-in cannot be opened: {0}")]
    Listener(String),
    #[error("the system gives no random bytes")]
    Random,
    #[error("timed out waiting for authorization callback")]
    TimedOut { reused_client: bool },
    #[error("authorization failed: the answer came from another issuer")]
    OtherIssuer { said: Option<String>, explicit: bool },
    #[error("authorization failed: oauth error: {error}{}", description.as_ref().map(|d| format!(": {d}")).unwrap_or_default())]
    Refused { error: String, description: Option<String> },
    #[error("exchanging code: {text}")]
    Exchange { text: String, class: Class },
    #[error("{host} does not accept the new token")]
    NotAccepted { host: String },
    #[error("the server has no device flow")]
    NoDevice,
    #[error("device sign-in: {text}")]
    Device { text: String, class: Option<Class> },
    #[error("the credential cannot be kept: {0}")]
    Storage(String),
}

impl GrantError {
    /// What a person can do about it. `command` is what they gave, as far as it is needed to try again.
    pub(crate) fn remedy(&self, grant: &GrantName, command: &str, port: Option<u16>) -> String {
        let port = port.unwrap_or(8976);
        let again = format!("Nothing was stored. To try again:\n  {command}");
        match self {
            Self::Discovery(error) => error.remedy(),
            Self::Url { why: Forbidden::Address, .. } => {
                format!("If it is in your own network:\n  {command} --allow-private-network")
            }
            Self::Url { .. } => "Give an https:// URL.".to_owned(),
            Self::Client(ClientError::OtherIssuer { .. }) => {
                format!("If that is right: moat revoke {grant}, then grant it again with the client of the new issuer.")
            }
            Self::Client(_) => format!(
                "Register an application with the server, with the redirect URI http://127.0.0.1:{port}/callback, \
                 then:\n  {command} --client-id <id> --redirect-port {port}\nand --client-secret - if it has a secret."
            ),
            Self::Listener(_) => "Give another port with --redirect-port, or leave it to moat.".to_owned(),
            Self::Random | Self::Storage(_) => Class::Storage.remedy().to_owned(),
            Self::TimedOut { reused_client } => {
                let forgotten = match reused_client {
                    true => "\n  - the server has forgotten the client that moat registered there: --new-client",
                    false => "",
                };
                format!(
                    "{again}\n\nIf the browser showed an error instead of a sign-in page:\n  - the redirect URI is not \
                     registered: http://127.0.0.1:{port}/callback, with --redirect-port {port}\n  - the server does not \
                     take 'resource': --no-resource{forgotten}"
                )
            }
            Self::OtherIssuer { said: Some(said), explicit: true } => format!(
                "If that is the right issuer, add to ~/.moat/oauth/{}.yaml:\n  issuer: {said}",
                name_of(grant)
            ),
            Self::OtherIssuer { .. } => {
                "Nothing was sent to anybody. The servers are set up wrongly, or somebody is after your sign-in: ask \
                 whoever runs them."
                    .to_owned()
            }
            Self::Refused { error, .. } => match error.as_str() {
                "access_denied" => format!("The sign-in was not allowed. {again}"),
                "invalid_target" => format!("The server does not take this resource:\n  {command} --no-resource"),
                "invalid_scope" => Class::InvalidScope.remedy().to_owned(),
                "unauthorized_client" | "invalid_client" => Class::UnauthorizedClient.remedy().to_owned(),
                "server_error" | "temporarily_unavailable" => Class::ServerError.remedy().to_owned(),
                _ => again,
            },
            Self::NotAccepted { .. } => format!(
                "Nothing was stored; what was granted before stays. The server may want other scopes or another \
                 resource:\n  {command} --scopes \"...\"\n  {command} --resource <uri>\nTo store the token all the same: \
                 --no-verify"
            ),
            Self::NoDevice => format!("Without it:\n  {command} --no-browser"),
            Self::Exchange { class, .. } | Self::Device { class: Some(class), .. } => {
                format!("{}\n\n{again}", class.remedy())
            }
            Self::Device { class: None, .. } => again,
        }
    }
}

fn name_of(grant: &GrantName) -> &str {
    grant.as_str().strip_prefix("oauth:").unwrap_or(grant.as_str())
}

pub(super) fn refusal(refused: &Refused) -> String {
    let said = match (&refused.error, &refused.description) {
        (Some(error), Some(description)) => format!(" ({error}: {description})"),
        (Some(error), None) => format!(" ({error})"),
        (None, _) if refused.class == Class::UnusableAnswer => " without a usable token".to_owned(),
        (None, _) => String::new(),
    };
    format!("token endpoint returned {}{said}", refused.status)
}

pub(super) fn device_failed(error: DeviceError) -> GrantError {
    let (text, class) = match error {
        DeviceError::Unreachable(class) => (class.words().to_owned(), Some(class)),
        DeviceError::Refused(refused) => (refusal(&refused), Some(refused.class)),
        DeviceError::Unusable => {
            ("the server's answer cannot be used".to_owned(), Some(Class::UnusableAnswer))
        }
        DeviceError::Expired => ("the code was not entered in time".to_owned(), None),
    };
    GrantError::Device { text, class }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn exchange(class: Class) -> GrantError {
        GrantError::Exchange { text: String::new(), class }
    }

    fn refused(error: &str) -> GrantError {
        GrantError::Refused { error: error.to_owned(), description: None }
    }

    fn discovery(class: Class) -> GrantError {
        GrantError::Discovery(DiscoveryError::Unreachable { host: "h".to_owned(), class })
    }

    #[test_case(discovery(Class::Name), "is this machine online?"; "offline")]
    #[test_case(discovery(Class::Connection), "Is the server up"; "nobody there")]
    #[test_case(discovery(Class::Tls), "certificate"; "a certificate")]
    #[test_case(GrantError::Discovery(DiscoveryError::NotWanted { status: 404 }), "is the URL right, with its path?"; "a wrong path")]
    #[test_case(GrantError::Discovery(DiscoveryError::NotWanted { status: 200 }), "moat grant mcp"; "no oauth")]
    #[test_case(GrantError::TimedOut { reused_client: false }, "moat grant oauth x --url u\n"; "a closed browser")]
    #[test_case(GrantError::TimedOut { reused_client: false }, "http://127.0.0.1:8999/callback"; "what to register")]
    #[test_case(GrantError::TimedOut { reused_client: true }, "--new-client"; "a forgotten client")]
    #[test_case(refused("access_denied"), "moat grant oauth x --url u"; "denied")]
    #[test_case(refused("invalid_scope"), "--scopes"; "scopes")]
    #[test_case(refused("invalid_target"), "--no-resource"; "resource")]
    #[test_case(exchange(Class::InvalidClient), "check --client-id and --client-secret"; "a wrong secret")]
    #[test_case(exchange(Class::InvalidGrant), "took too long"; "an expired code")]
    #[test_case(device_failed(DeviceError::Expired), "moat grant oauth x --url u"; "an expired device code")]
    #[test_case(GrantError::Listener(String::new()), "--redirect-port"; "a port in use")]
    #[test_case(GrantError::OtherIssuer { said: None, explicit: false }, "somebody is after your sign-in"; "a mix-up")]
    fn each_failure_names_its_remedy(error: GrantError, wanted: &str) {
        let remedy = error.remedy(&"oauth:x".parse().unwrap(), "moat grant oauth x --url u", Some(8999));
        assert!(remedy.contains(wanted), "{remedy}");
    }
}
