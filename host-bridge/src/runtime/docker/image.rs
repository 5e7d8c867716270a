//! Finding an image in an engine.

use bollard::{models::ImageInspect, query_parameters::CreateImageOptionsBuilder};
use futures_util::TryStreamExt;

use super::engine::{self, Engine, EngineError};
use crate::runtime::{
    embed::Architecture,
    image::{Image, is_built_here, variables},
};

/// Looks it up; fetches it first if it is not here and a registry may have it.
pub(super) async fn find(engine: &Engine, name: &str) -> Result<Image, EngineError> {
    let inspected = match engine.api.inspect_image(name).await {
        Err(error) if engine::is_not_found(&error) && !is_built_here(name) => {
            fetch(engine, name).await?;
            engine.api.inspect_image(name).await
        }
        other => other,
    };
    match inspected {
        Ok(image) => of(name, image),
        Err(error) if engine::is_not_found(&error) => Err(EngineError::NoImage(name.to_owned())),
        Err(source) => Err(EngineError::Asking { doing: "looking at the image", source }),
    }
}

async fn fetch(engine: &Engine, name: &str) -> Result<(), EngineError> {
    crate::cli::print::note(&format!("Fetching image {name}..."));
    let tagged = if name.contains('@') || name.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        name.to_owned()
    } else {
        format!("{name}:latest")
    };
    let options = CreateImageOptionsBuilder::new().from_image(&tagged).build();
    let fetching = engine.api.create_image(Some(options), None, None);
    let progress = fetching.try_for_each(|step| async move {
        match step.error_detail.and_then(|detail| detail.message) {
            Some(error) => Err(bollard::errors::Error::DockerStreamError { error }),
            None => Ok(()),
        }
    });
    progress.await.map_err(|source| EngineError::Fetching { image: name.to_owned(), source })
}

/// What of it matters.
fn of(name: &str, inspected: ImageInspect) -> Result<Image, EngineError> {
    let ours = Architecture::OWN.name();
    let theirs = inspected.architecture.unwrap_or_default();
    if !theirs.is_empty() && theirs != ours {
        return Err(EngineError::Architecture { image: name.to_owned(), theirs, ours });
    }
    let config = inspected.config.unwrap_or_default();
    Ok(Image {
        id: inspected.id.unwrap_or_else(|| name.to_owned()),
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        directory: config.working_dir.unwrap_or_default(),
        env: variables(&config.env.unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_architecture_is_refused() {
        let foreign = ImageInspect { architecture: Some("s390x".into()), ..ImageInspect::default() };
        assert!(of("x", foreign).unwrap_err().to_string().contains("s390x"));
    }
}
