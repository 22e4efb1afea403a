# Where sources come from. Read by scripts/driver-suites.sh.

# The original source of a Debian package, unpacked into $home/src: of the suites that apt knows here, or of a newer one of
# Debian. apt's own configuration and keys, with sources in the place of binaries and lists of its own.
#   fetch_debian PACKAGE[=VERSION] [SUITE]
fetch_debian() {
    local wanted=$1 newer=${2:-} apt=$home/apt/${2:-here} archive found=0
    mkdir -p "$apt"/{parts,lists/partial,cache/archives/partial,download} "$home/src"
    if [ -n "$newer" ]; then
        local keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror
        # Words of apt, not of this shell.
        # shellcheck disable=SC2016
        mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
        [ -n "$mirror" ] || fail "apt has no index of Debian itself: apt-get update"
        echo "deb-src [signed-by=$keyring] $mirror $newer main" >"$apt/parts/main.list"
    else
        find /etc/apt/sources.list.d -name '*.sources' -exec cp {} "$apt/parts/" \;
        find "$apt/parts" -name '*.sources' -exec sed -i 's/^Types: *deb *$/Types: deb-src/' {} +
        if [ -s /etc/apt/sources.list ]; then
            sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$apt/parts/main.list"
        fi
    fi
    local options=(-o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$apt/parts"
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o "APT::Sandbox::User=root")
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
