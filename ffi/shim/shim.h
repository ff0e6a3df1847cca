/* What the Rust side sees of DPDK: the plain functions that build.rs lists, and this shim.
 *
 * DPDK's fast functions are `static inline`, so a library cannot export them. The shim wraps those
 * we need, at the size of a burst: one call in, one call out, however many packets there are.
 * It is compiled into a shared object that depends on libdpdk and is loaded at run time.
 */
#ifndef MILLRACE_SHIM_H
#define MILLRACE_SHIM_H

#include <stddef.h>
#include <stdint.h>

#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_memory.h>

/* Headroom that every DPDK driver leaves before a received frame; fixed when DPDK is built. */
static const uint16_t MR_DRIVER_HEADROOM_BYTES = RTE_PKTMBUF_HEADROOM;
/* The most packets one burst call of the shim takes. */
#define MR_MAX_BURST 64

/* Constants that are macros with casts, which bindgen cannot read. */
static const uint64_t MR_RX_OFFLOAD_RSS_HASH = RTE_ETH_RX_OFFLOAD_RSS_HASH;
static const uint64_t MR_TX_OFFLOAD_FAST_FREE = RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
static const uint64_t MR_RSS_IP = RTE_ETH_RSS_IP;
static const uint64_t MR_RSS_TCP = RTE_ETH_RSS_TCP;
static const uint64_t MR_RSS_UDP = RTE_ETH_RSS_UDP;
static const uint32_t MR_SPEED_UNKNOWN = RTE_ETH_SPEED_NUM_UNKNOWN;
static const int MR_SOCKET_ANY = SOCKET_ID_ANY;

/* A packet: a range of one buffer of the region. In 16 bytes, so that it moves as one. */
struct mr_desc {
	uint32_t index;  /* buffer's number in the region */
	uint16_t offset; /* first byte of the frame in the buffer */
	uint16_t len;    /* bytes of the frame */
	uint32_t hash;   /* the NIC's flow hash, or 0 */
	uint32_t unused;
};

/* What a receive burst brought, and what it threw away, already freed. */
struct mr_rx {
	uint64_t bytes;         /* of the packets in the burst */
	uint64_t dropped_bytes; /* of the others */
	uint32_t too_large;     /* in several segments, or longer than allowed */
	uint32_t malformed;     /* shorter than an Ethernet header, or not in our region */
};

/* What became of a transmit burst. */
struct mr_tx {
	uint64_t bytes; /* of the packets taken */
	uint16_t fit;   /* packets in front that can be sent */
	uint16_t taken; /* of those, packets in front that the driver took */
};

/* A mempool whose buffers are `count` consecutive buffers of the region. Opaque. */
struct mr_pool;

/* How a pool lies in the region. */
struct mr_pool_config {
	void *base;             /* buffer 0 of the region */
	uint64_t base_iova;     /* what a device calls that address */
	uint32_t first;         /* first buffer of the pool */
	uint32_t count;         /* buffers in the pool */
	uint32_t stride;        /* bytes from one buffer to the next, a multiple of 64 */
	uint16_t headroom;      /* bytes wanted before a received frame */
	uint32_t cache;         /* objects in the cache of each lcore */
};

/* EAL is ready: the last error of the calling thread. */
int mr_errno(void);

/* Sends DPDK's log to memory from now on; call before rte_eal_init. Returns 0 or an errno. */
int mr_log_capture(void);
/* Moves what was logged since the last call to `out` (at most `cap` bytes); returns its length. */
size_t mr_log_take(char *out, size_t cap);

/* Registers `len` bytes at `base`, in pages of `page` bytes, as memory that devices may use at the
 * same addresses. Returns 0 or an errno. */
int mr_extmem_register(void *base, size_t len, size_t page);

/* Makes a pool. Returns NULL and sets *err to an errno. */
struct mr_pool *mr_pool_create(const char *name, const struct mr_pool_config *config, int *err);
/* Frees a pool that no device uses any more. */
void mr_pool_free(struct mr_pool *pool);
/* Takes up to n free buffers; returns how many. */
uint32_t mr_pool_take(struct mr_pool *pool, uint32_t *out, uint32_t n);
/* Gives buffers back. Numbers outside the pool are ignored; returns how many were. */
uint32_t mr_pool_give(struct mr_pool *pool, const uint32_t *in, uint32_t n);
/* Buffers free now, those in the lcores' caches included. */
uint32_t mr_pool_free_count(const struct mr_pool *pool);
/* Empties the calling thread's cache into the pool, for other threads to use. */
void mr_pool_flush_cache(struct mr_pool *pool);
/* The mempool, for rte_eth_rx_queue_setup. */
struct rte_mempool *mr_pool_mempool(struct mr_pool *pool);

/* Receives up to n (at most MR_MAX_BURST) packets into out; returns how many. Frames longer than
 * max_frame, of several segments, or not of this pool are freed. Tells the rest in result. */
uint16_t mr_rx_burst(uint16_t port, uint16_t queue, struct mr_pool *pool, uint16_t max_frame,
		     struct mr_desc *out, uint16_t n, struct mr_rx *result);
/* Sends n (at most MR_MAX_BURST) packets, up to the first that is shorter than an Ethernet header,
 * longer than max_frame, or not inside a buffer of the pool. Tells in result how far it came. The
 * driver frees packets that it took to the pool when they are sent. */
void mr_tx_burst(uint16_t port, uint16_t queue, struct mr_pool *pool, uint16_t max_frame,
		 const struct mr_desc *in, uint16_t n, struct mr_tx *result);
/* Asks the driver to free what it has sent. */
void mr_tx_cleanup(uint16_t port, uint16_t queue);

/* rte_ring on ordinary memory, for benchmarks; needs no EAL. */
struct rte_ring;
#define MR_RING_SINGLE_PRODUCER 1
#define MR_RING_SINGLE_CONSUMER 2
struct rte_ring *mr_ring_new(uint32_t slots, uint32_t flags);
void mr_ring_delete(struct rte_ring *ring);
uint32_t mr_ring_enqueue(struct rte_ring *ring, void *const *in, uint32_t n);
uint32_t mr_ring_dequeue(struct rte_ring *ring, void **out, uint32_t n);

/* The loops of the ring benchmark, whole, so that the peer pays for no call from Rust.
 * One core: `rounds` times a burst in, a burst out; returns the sum of the pointers read.
 * With `metadata`, 16 bytes behind each pointer are written before and read after. */
uint64_t mr_ring_bench_pingpong(struct rte_ring *ring, void **elements, uint32_t elements_n,
				uint32_t burst, uint64_t rounds, int metadata);
/* Two cores: pushes `total` pointers / pops `total` pointers and returns their sum. */
void mr_ring_bench_produce(struct rte_ring *ring, void **elements, uint32_t elements_n,
			   uint32_t burst, uint64_t total, int metadata);
uint64_t mr_ring_bench_consume(struct rte_ring *ring, uint32_t burst, uint64_t total,
			       int metadata);

/* rte_hash as its guide recommends it where one thread uses it: CRC hash, no locks. For benchmarks;
 * needs EAL. NULL and rte_errno when it cannot be made. */
struct rte_hash;
struct rte_hash *mr_hash_new(uint32_t entries, uint32_t key_bytes);
void mr_hash_delete(struct rte_hash *hash);
/* 0 or a negative errno. */
int mr_hash_add(struct rte_hash *hash, const void *key, uint64_t data);
int mr_hash_del(struct rte_hash *hash, const void *key);
/* Looks up the keys of `count` that lie one behind the other, in bursts (at most MR_MAX_BURST), the
 * hash function computed on the way, or, with `hashes`, taken from there (what mr_hash_of gives).
 * Returns the sum of what is stored with those found. */
uint64_t mr_hash_bench_lookup(struct rte_hash *hash, const void *keys, const uint32_t *hashes,
			      uint32_t key_bytes, uint64_t count, uint32_t burst);
uint32_t mr_hash_of(struct rte_hash *hash, const void *key);
/* Asks the kernel to put EAL's memory on huge pages now, where it lies on ordinary ones. */
void mr_memory_collapse(void);

#endif
