# Sourced. Puts clusters of this run in a RAM disk if it has so many MB free, unless METAKO_PLAYGROUND_DIR names a place: pages
# that are never written to a disk disturb nobody, and what is thrown away does not have to survive a power cut.
clusters_in_memory() {
    if [ -n "${METAKO_PLAYGROUND_DIR:-}" ] || [ ! -w /dev/shm ]; then
        return
    fi
    free=$(df --output=avail --block-size=M /dev/shm | tail -n 1 | tr -dc 0-9)
    if [ "${free:-0}" -ge "$1" ]; then
        export METAKO_PLAYGROUND_DIR=/dev/shm
        say "clusters are in /dev/shm"
    fi
}
