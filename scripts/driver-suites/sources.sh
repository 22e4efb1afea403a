# Where sources come from. Read by scripts/driver-suites.sh.

# Sets `options` for apt: its own configuration and keys, with lists of its own, of sources too: of the suites that apt knows
# here, or of a newer one of Debian. Sets `apt` to their folder.
#   debian_lists [SUITE]
debian_lists() {
    local newer=${1:-}
    apt=$home/apt/${newer:-here}
    mkdir -p "$apt"/{parts,lists/partial,cache/archives/partial,download} "$home/src"
    if [ -n "$newer" ]; then
        local keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror
        # Words of apt, not of this shell.
        # shellcheck disable=SC2016
        mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
        [ -n "$mirror" ] || fail "apt has no index of Debian itself: apt-get update"
        printf "%s [signed-by=$keyring] $mirror $newer main\n" deb deb-src >"$apt/parts/main.list"
    else
        find /etc/apt/sources.list.d -name '*.sources' -exec cp {} "$apt/parts/" \;
        find "$apt/parts" -name '*.sources' -exec sed -i 's/^Types: *deb *$/Types: deb deb-src/' {} +
        if [ -s /etc/apt/sources.list ]; then
            sed -n 's/^deb \(.*\)/deb \1\ndeb-src \1/p' /etc/apt/sources.list >"$apt/parts/main.list"
        fi
    fi
    options=(-o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$apt/parts"
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o "APT::Sandbox::User=root")
}

# The original source of a Debian package, unpacked into $home/src.
#   fetch_debian PACKAGE[=VERSION] [SUITE]
fetch_debian() {
    local wanted=$1 archive found=0 apt options
    debian_lists "${2:-}"
    apt-get "${options[@]}" --quiet update >&2
    rm -rf "$apt/download"
    mkdir -p "$apt/download"
    (cd "$apt/download" && apt-get "${options[@]}" --quiet source --download-only --only-source "$wanted" >&2) ||
        fail "apt-get could not fetch the source of $wanted"
    for archive in "$apt"/download/*.orig.tar.*; do
        case $archive in *.asc) continue ;; esac
        tar xf "$archive" -C "$home/src"
        found=1
    done
    [ "$found" = 1 ] || fail "the source package of $wanted has no archive"
}

# Binary packages, unpacked into a folder and not installed.
#   unpack_debian FOLDER SUITE PACKAGE...
unpack_debian() {
    local into=$1 apt options package
    debian_lists "$2"
    shift 2
    apt-get "${options[@]}" --quiet update >&2
    rm -rf "$apt/download"
    mkdir -p "$apt/download" "$into"
    (cd "$apt/download" && apt-get "${options[@]}" --quiet download "$@" >&2) || fail "apt-get could not fetch $*"
    for package in "$apt"/download/*.deb; do dpkg-deb --extract "$package" "$into"; done
}

# The packages that a package needs, itself among them, of those whose name fits a pattern.
#   needs_debian SUITE PATTERN PACKAGE
needs_debian() {
    local apt options
    debian_lists "$1"
    [ -n "$(ls "$apt/lists"/*_Packages 2>/dev/null)" ] || apt-get "${options[@]}" --quiet update >&2
    apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances "$3" | grep -E "^[a-z]" | grep -E "$2" | sort -u
}
