//! The files of the page, embedded in the program.

/// One file.
pub(crate) struct Asset {
    name: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) bytes: &'static [u8],
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

const ASSETS: [Asset; 6] = [
    Asset {
        name: "chat.css",
        content_type: "text/css; charset=utf-8",
        bytes: include_bytes!("../assets/chat.css"),
    },
    Asset { name: "chat.js", content_type: SCRIPT, bytes: include_bytes!("../assets/chat.js") },
    Asset {
        name: "messages.js",
        content_type: SCRIPT,
        bytes: include_bytes!("../assets/messages.js"),
    },
    Asset { name: "events.js", content_type: SCRIPT, bytes: include_bytes!("../assets/events.js") },
    Asset { name: "scroll.js", content_type: SCRIPT, bytes: include_bytes!("../assets/scroll.js") },
    Asset {
        name: "icon.svg",
        content_type: "image/svg+xml",
        bytes: include_bytes!("../assets/icon.svg"),
    },
];

/// The file of that name.
pub(crate) fn find(name: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.name == name)
}

impl Asset {
    /// Changes when the content does: 64-bit FNV-1a, against change and not against malice.
    pub(crate) fn entity_tag(&self) -> String {
        let hash = self.bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("\"{hash:016x}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_import_files_that_exist_and_nothing_from_elsewhere() {
        for asset in &ASSETS {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            let foreign = text.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !foreign.contains("http://") && !foreign.contains("https://"),
                "{}",
                asset.name
            );
            for line in text.lines().filter(|line| line.starts_with("import ")) {
                let name = line.split("\"./").nth(1).and_then(|rest| rest.split('"').next());
                assert!(name.is_some_and(|name| find(name).is_some()), "{}: {line}", asset.name);
            }
        }
    }
}
