//! `moat image build [base|claude|codex|gemini]`: moat's own images, built by an engine of this machine.

use std::path::PathBuf;

use moat_shared::{exit, plan::Agent};

use super::{Context, Failure, Outcome, print};
use crate::{
    config::RuntimeName,
    runtime::{
        RuntimeError, choose,
        docker::{
            Engine,
            build::{self, Kind, Wish},
        },
        embed,
    },
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Build an image with the sidecar and a user without rights, and an agent
    Build(BuildArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat image build claude              `moat claude` takes it from then on
  moat image build base                for `moat run --runtime docker`, and for images of your own
  moat image build gemini --modules ./node_modules
                                       without a network: the agent comes from there
  moat image build base --from my/node:22

An agent's image is made on the base, which is built first where it is not there.")]
struct BuildArgs {
    /// Which
    #[arg(value_name = "IMAGE", default_value = "base")]
    kind: Which,
    /// The engine: docker or podman [default: the first that answers]
    #[arg(long, alias = "engine", env = "MOAT_RUNTIME", hide_env_values = true, value_name = "NAME")]
    runtime: Option<String>,
    /// What the base is made on
    #[arg(long, value_name = "IMAGE", default_value = build::FROM)]
    from: String,
    /// The network of what runs during the build, as the engine calls it
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Take the agent from this node_modules instead of the registry
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    Base,
    Claude,
    Codex,
    Gemini,
}

impl Which {
    const fn kind(self) -> Kind {
        match self {
            Self::Base => Kind::Base,
            Self::Claude => Kind::Of(Agent::Claude),
            Self::Codex => Kind::Of(Agent::Codex),
            Self::Gemini => Kind::Of(Agent::Gemini),
        }
    }
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let Verb::Build(args) = self.verb;
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(format!("starting: {error}")))?;
        tokio.block_on(args.run(context))
    }
}

impl BuildArgs {
    async fn run(self, context: &Context) -> Outcome {
        let kind = self.kind.kind();
        let sidecar = embed::sidecar().map_err(|error| Failure::from_error(&error))?.bytes;
        if let Some(modules) = &self.modules {
            build::check_modules(kind, modules)
                .map_err(|text| Failure::new(text).with_hint("npm install --prefix DIR PACKAGE makes one"))?;
        }
        let engine = self.engine(context).await?;
        let failure = |error| Failure::from_error(&error);
        let base = Kind::Base.image();
        let mut kinds = Vec::new();
        if kind == Kind::Base || build::id_of(&engine, &base).await.map_err(failure)?.is_none() {
            kinds.push(Kind::Base);
        }
        if kind != Kind::Base {
            kinds.push(kind);
        }
        if context.global.dry_run {
            for kind in kinds {
                print::note(&format!(
                    "Would build {} with {} at {}",
                    kind.image(),
                    engine.kind,
                    engine.socket.display()
                ));
            }
            return Ok(exit::OK);
        }
        let mut id = String::new();
        for kind in kinds {
            let is_base = kind == Kind::Base;
            let from = if is_base { self.from.clone() } else { base.clone() };
            build::have(&engine, &from).await.map_err(|error| {
                Failure::from_error(&error).with_hint(format!(
                    "The image is made on {from}. Load it (docker load -i FILE; docker import ROOTFS.tar {from}), or name another that has \
                     Node and useradd: --from IMAGE"
                ))
            })?;
            print::note(&format!("Building {} on {from}...", kind.image()));
            let modules = self.modules.clone().filter(|_| !is_base);
            let wish = Wish { kind, from, modules, network: self.network.clone() };
            id = build::build(&engine, wish, sidecar, print::note).await.map_err(failure)?;
        }
        let image = kind.image();
        if context.global.json {
            let answer = serde_json::json!({
                "image": image, "id": id, "runtime": engine.kind.name(), "engine": engine.socket.display().to_string(),
            });
            print::line(&answer.to_string());
        } else {
            print::line(&image);
        }
        Ok(exit::OK)
    }

    async fn engine(&self, context: &Context) -> Result<Engine, Failure> {
        let wanted = self
            .runtime
            .as_deref()
            .map(|text| text.parse::<RuntimeName>().map_err(|_| RuntimeError::Unknown(text.to_owned())));
        let found = match wanted.transpose() {
            Ok(wanted) => choose::engine(wanted, &context.env).await,
            Err(error) => Err(error),
        };
        found.map_err(|error| Failure::from_error(&error))
    }
}
