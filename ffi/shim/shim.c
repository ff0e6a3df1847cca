/* See shim.h. Ports and pools here; the log and the ring benchmark below. */
#include "shim.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <rte_ether.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_ring.h>

struct mr_pool {
	struct rte_mempool *mempool;
	uintptr_t base;          /* buffer 0 of the region */
	uint32_t first, count, stride;
	uint16_t shift;          /* where mbufs' buffers start in ours: headroom above the driver's */
	uint64_t per_stride;     /* ceil(2^64 / (stride / 64)) */
	struct rte_mbuf *mbufs[]; /* of buffer first + i */
};

int mr_errno(void)
{
	return rte_errno;
}

int mr_extmem_register(void *base, size_t len, size_t page)
{
	size_t pages = len / page;
	rte_iova_t *iova = calloc(pages, sizeof(*iova));

	if (iova == NULL)
		return ENOMEM;
	for (size_t i = 0; i < pages; i++)
		iova[i] = (rte_iova_t)(uintptr_t)base + i * page;
	int failed = rte_extmem_register(base, len, iova, pages, page) ? rte_errno : 0;

	free(iova);
	return failed;
}

/* ---- pool ---- */

/* Number of the buffer that holds this address. The multiplication by 2^64/d is an exact division
 * for dividends below 2^32, that is for regions below 256 GiB; several times faster than `div`. */
static inline uint32_t index_at(uint64_t bytes_from_base, uint64_t per_stride)
{
	return (uint32_t)(((unsigned __int128)(bytes_from_base / 64) * per_stride) >> 64);
}

static inline uint32_t index_of(const struct mr_pool *pool, const void *addr)
{
	return index_at((uintptr_t)addr - pool->base, pool->per_stride);
}

static inline uintptr_t buffer_start(const struct mr_pool *pool, uint32_t index)
{
	return pool->base + (uintptr_t)index * pool->stride;
}

/* The mbuf of a buffer of this pool; the caller has checked that it is one. */
static inline struct rte_mbuf *mbuf_of(const struct mr_pool *pool, uint32_t index)
{
	return pool->mbufs[index - pool->first];
}

static inline int holds(const struct mr_pool *pool, uint32_t index)
{
	return index - pool->first < pool->count;
}

/* Drivers write a received frame RTE_PKTMBUF_HEADROOM bytes after buf_addr, whatever headroom the
 * region has, so the mbuf's buffer starts `shift` bytes into ours. */
static void note_mbuf(struct rte_mempool *mempool, void *arg, void *object, unsigned int number)
{
	struct mr_pool *pool = arg;
	struct rte_mbuf *m = object;
	uint32_t index = index_of(pool, m->buf_addr);

	(void)mempool;
	(void)number;
	if (!holds(pool, index))
		return;
	pool->mbufs[index - pool->first] = m;
	m->buf_addr = RTE_PTR_ADD(m->buf_addr, pool->shift);
	m->buf_iova += pool->shift;
}

struct mr_pool *mr_pool_create(const char *name, const struct mr_pool_config *c, int *err)
{
	struct mr_pool *pool = calloc(1, sizeof(*pool) + (size_t)c->count * sizeof(pool->mbufs[0]));

	if (pool == NULL) {
		*err = ENOMEM;
		return NULL;
	}
	uint64_t start = (uint64_t)c->first * c->stride;
	struct rte_pktmbuf_extmem share = {
		.buf_ptr = RTE_PTR_ADD(c->base, start),
		.buf_iova = c->base_iova + start,
		.buf_len = (size_t)c->count * c->stride,
		.elt_size = (uint16_t)c->stride,
	};
	pool->base = (uintptr_t)c->base;
	pool->first = c->first;
	pool->count = c->count;
	pool->stride = c->stride;
	pool->shift = c->headroom > RTE_PKTMBUF_HEADROOM ? c->headroom - RTE_PKTMBUF_HEADROOM : 0;
	pool->per_stride = UINT64_MAX / (c->stride / 64) + 1;
	pool->mempool = rte_pktmbuf_pool_create_extbuf(name, c->count, c->cache, 0,
						       (uint16_t)(c->stride - pool->shift),
						       SOCKET_ID_ANY, &share, 1);
	if (pool->mempool == NULL) {
		*err = rte_errno;
		free(pool);
		return NULL;
	}
	rte_mempool_obj_iter(pool->mempool, note_mbuf, pool);
	for (uint32_t i = 0; i < c->count; i++) {
		if (pool->mbufs[i] == NULL) {
			*err = EINVAL;
			mr_pool_free(pool);
			return NULL;
		}
	}
	return pool;
}

void mr_pool_free(struct mr_pool *pool)
{
	rte_mempool_free(pool->mempool);
	free(pool);
}

uint32_t mr_pool_take(struct mr_pool *pool, uint32_t *out, uint32_t n)
{
	struct rte_mbuf *taken[MR_MAX_BURST];
	uint32_t got = 0, step = MR_MAX_BURST;

	/* The mempool gives all or nothing: ask for less when it has less. */
	while (got < n && step > 0) {
		step = RTE_MIN(step, n - got);
		if (rte_mempool_get_bulk(pool->mempool, (void **)taken, step) != 0) {
			step /= 2;
			continue;
		}
		for (uint32_t i = 0; i < step; i++)
			out[got++] = index_of(pool, taken[i]->buf_addr);
	}
	return got;
}

uint32_t mr_pool_give(struct mr_pool *pool, const uint32_t *in, uint32_t n)
{
	void *given[MR_MAX_BURST];
	uint32_t kept = 0, ignored = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (unlikely(!holds(pool, in[i]))) {
			ignored++;
			continue;
		}
		given[kept++] = mbuf_of(pool, in[i]);
		if (kept == MR_MAX_BURST) {
			rte_mempool_put_bulk(pool->mempool, given, kept);
			kept = 0;
		}
	}
	if (kept > 0)
		rte_mempool_put_bulk(pool->mempool, given, kept);
	return ignored;
}

uint32_t mr_pool_free_count(const struct mr_pool *pool)
{
	return rte_mempool_avail_count(pool->mempool);
}

void mr_pool_flush_cache(struct mr_pool *pool)
{
	struct rte_mempool_cache *cache = rte_mempool_default_cache(pool->mempool, rte_lcore_id());

	if (cache != NULL)
		rte_mempool_cache_flush(cache, pool->mempool);
}

struct rte_mempool *mr_pool_mempool(struct mr_pool *pool)
{
	return pool->mempool;
}

/* ---- bursts ---- */

/* Puts back a VLAN tag that the driver took out (net_af_packet does, and cannot put it back into
 * an external buffer itself): the two addresses move four bytes down, into the headroom. */
static void restore_vlan_tag(struct rte_mbuf *m)
{
	uint8_t *old = rte_pktmbuf_mtod(m, uint8_t *), *new = old - RTE_VLAN_HLEN;
	uint16_t tag[2] = { rte_cpu_to_be_16(RTE_ETHER_TYPE_VLAN), rte_cpu_to_be_16(m->vlan_tci) };

	if (m->data_off < RTE_VLAN_HLEN || m->data_len < RTE_ETHER_HDR_LEN)
		return;
	memmove(new, old, 2 * RTE_ETHER_ADDR_LEN);
	memcpy(new + 2 * RTE_ETHER_ADDR_LEN, tag, sizeof(tag));
	m->data_off -= RTE_VLAN_HLEN;
	m->data_len += RTE_VLAN_HLEN;
	m->pkt_len += RTE_VLAN_HLEN;
}

/* Undoes what mr_tx_burst did to a buffer whose frame began below `shift`. */
static void restore_buffer_start(const struct mr_pool *pool, struct rte_mbuf *m, uint32_t index)
{
	uintptr_t wanted = buffer_start(pool, index) + pool->shift;

	m->buf_iova += wanted - (uintptr_t)m->buf_addr;
	m->buf_addr = (void *)wanted;
}

/* Frees a frame that is not handed on, and counts it. */
static __rte_cold void throw_away(struct rte_mbuf *m, const struct rte_mempool *mempool,
				  struct mr_rx *result)
{
	if (m->pool != mempool || m->pkt_len < RTE_ETHER_HDR_LEN)
		result->malformed++;
	else
		result->too_large++;
	result->dropped_bytes += m->pkt_len;
	rte_pktmbuf_free(m);
}

uint16_t mr_rx_burst(uint16_t port, uint16_t queue, struct mr_pool *pool, uint16_t max_frame,
		     struct mr_desc *out, uint16_t n, struct mr_rx *result)
{
	struct rte_mbuf *got[MR_MAX_BURST];
	const struct rte_mempool *mempool = pool->mempool;
	const uintptr_t base = pool->base;
	const uint64_t per_stride = pool->per_stride;
	const uint32_t stride = pool->stride, shift = pool->shift;
	const uint32_t longest = max_frame - RTE_ETHER_HDR_LEN;
	unsigned int received = rte_eth_rx_burst(port, queue, got, RTE_MIN(n, MR_MAX_BURST));
	struct mr_desc *end = out;
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < received; i++) {
		struct rte_mbuf *m = got[i];
		uint64_t flags = m->ol_flags;

		if (unlikely(flags & RTE_MBUF_F_RX_VLAN_STRIPPED))
			restore_vlan_tag(m);
		/* What is too short is too long by this. */
		if (unlikely(m->pool != mempool || m->nb_segs != 1 ||
			     m->pkt_len - RTE_ETHER_HDR_LEN > longest)) {
			throw_away(m, mempool, result);
			continue;
		}
		uint64_t at = (uintptr_t)m->buf_addr - base;
		uint32_t index = index_at(at, per_stride);
		uint32_t start = (uint32_t)at - index * stride;
		uint32_t len = m->data_len;

		end->index = index;
		end->offset = (uint16_t)(start + m->data_off);
		end->len = (uint16_t)len;
		end->hash = flags & RTE_MBUF_F_RX_RSS_HASH ? m->hash.rss : 0;
		end++;
		bytes += len;
		if (unlikely(start != shift))
			restore_buffer_start(pool, m, index);
	}
	result->bytes = bytes;
	return (uint16_t)(end - out);
}

/* Lets a packet begin below `shift` in its buffer: a header was pushed so far down that data_off
 * would be negative, so this mbuf's buffer starts where ours does. The next receive into it puts
 * that right. */
static __rte_cold void lower_buffer_start(const struct mr_pool *pool, struct rte_mbuf *m,
					  uint16_t offset)
{
	m->buf_iova -= pool->shift;
	m->buf_addr = RTE_PTR_SUB(m->buf_addr, pool->shift);
	m->data_off = offset;
}

void mr_tx_burst(uint16_t port, uint16_t queue, struct mr_pool *pool, uint16_t max_frame,
		 const struct mr_desc *in, uint16_t n, struct mr_tx *result)
{
	const uint32_t first = pool->first, count = pool->count, stride = pool->stride;
	const uint32_t shift = pool->shift, longest = max_frame - RTE_ETHER_HDR_LEN;
	struct rte_mbuf *const *const mbufs = pool->mbufs;
	struct rte_mbuf *out[MR_MAX_BURST];
	unsigned int fit, taken = 0;
	uint64_t bytes = 0;

	n = RTE_MIN(n, MR_MAX_BURST);
	for (fit = 0; fit < n; fit++) {
		const uint32_t at = in[fit].index - first, len = in[fit].len;

		/* What is too short is too long by this. */
		if (unlikely(at >= count || len - RTE_ETHER_HDR_LEN > longest ||
			     in[fit].offset + len > stride))
			break;
		out[fit] = mbufs[at];
		rte_prefetch0(out[fit]);
		bytes += len;
	}
	for (unsigned int i = 0; i < fit; i++) {
		struct rte_mbuf *m = out[i];

		m->data_off = (uint16_t)(in[i].offset - shift);
		if (unlikely(in[i].offset < shift))
			lower_buffer_start(pool, m, in[i].offset);
		m->data_len = in[i].len;
		m->pkt_len = in[i].len;
		/* No offload is asked for. The flag EXTERNAL goes too: it matters only to clones,
		 * of which there are none, and its absence makes freeing cheaper. */
		m->ol_flags = 0;
	}
	if (fit > 0)
		taken = rte_eth_tx_burst(port, queue, out, (uint16_t)fit);
	for (unsigned int i = taken; i < fit; i++)
		bytes -= in[i].len;
	*result = (struct mr_tx){ .bytes = bytes, .fit = (uint16_t)fit, .taken = (uint16_t)taken };
}

void mr_tx_cleanup(uint16_t port, uint16_t queue)
{
	rte_eth_tx_done_cleanup(port, queue, 0);
}

/* ---- log ---- */

static struct {
	pthread_mutex_t lock;
	FILE *stream;
	size_t len;
	char text[8192];
} log_store = { .lock = PTHREAD_MUTEX_INITIALIZER };

static ssize_t log_write(void *cookie, const char *from, size_t len)
{
	(void)cookie;
	pthread_mutex_lock(&log_store.lock);
	/* The first lines name the cause; what does not fit is lost. */
	size_t fits = RTE_MIN(len, sizeof(log_store.text) - log_store.len);

	memcpy(log_store.text + log_store.len, from, fits);
	log_store.len += fits;
	pthread_mutex_unlock(&log_store.lock);
	return (ssize_t)len;
}

int mr_log_capture(void)
{
	cookie_io_functions_t calls = { .write = log_write };

	if (log_store.stream == NULL)
		log_store.stream = fopencookie(NULL, "w", calls);
	if (log_store.stream == NULL)
		return ENOMEM;
	return rte_openlog_stream(log_store.stream) ? EINVAL : 0;
}

size_t mr_log_take(char *out, size_t cap)
{
	pthread_mutex_lock(&log_store.lock);
	size_t len = RTE_MIN(cap, log_store.len);

	memcpy(out, log_store.text, len);
	log_store.len = 0;
	pthread_mutex_unlock(&log_store.lock);
	return len;
}

/* ---- rte_ring, for the benchmark ---- */

struct rte_ring *mr_ring_new(uint32_t slots, uint32_t flags)
{
	ssize_t bytes = rte_ring_get_memsize(slots);
	void *memory = NULL;
	unsigned int ring_flags = 0;

	if (flags & MR_RING_SINGLE_PRODUCER)
		ring_flags |= RING_F_SP_ENQ;
	if (flags & MR_RING_SINGLE_CONSUMER)
		ring_flags |= RING_F_SC_DEQ;
	if (bytes < 0 || posix_memalign(&memory, 2 << 20, (size_t)bytes) != 0)
		return NULL;
	if (rte_ring_init(memory, "mr_bench", slots, ring_flags) != 0) {
		free(memory);
		return NULL;
	}
	return memory;
}

void mr_ring_delete(struct rte_ring *ring)
{
	free(ring);
}

uint32_t mr_ring_enqueue(struct rte_ring *ring, void *const *in, uint32_t n)
{
	return rte_ring_enqueue_burst(ring, in, n, NULL);
}

uint32_t mr_ring_dequeue(struct rte_ring *ring, void **out, uint32_t n)
{
	return rte_ring_dequeue_burst(ring, out, n, NULL);
}

/* The 16 bytes of an mbuf that a consumer needs first: where the packet is and how long. */
static inline void write_metadata(void *element, uint64_t value)
{
	((uint64_t *)element)[0] = value;
	((uint64_t *)element)[1] = ~value;
}

static inline uint64_t read_metadata(const void *element)
{
	return ((const uint64_t *)element)[0] + ((const uint64_t *)element)[1];
}

uint64_t mr_ring_bench_pingpong(struct rte_ring *ring, void **elements, uint32_t elements_n,
				uint32_t burst, uint64_t rounds, int metadata)
{
	void *out[MR_MAX_BURST];
	uint64_t sum = 0;
	uint32_t at = 0;

	for (uint32_t i = 0; i < MR_MAX_BURST; i++)
		out[i] = elements[i];
	for (uint64_t round = 0; round < rounds; round++) {
		for (uint32_t i = 0; i < burst && metadata; i++)
			write_metadata(elements[at + i], round + i);
		/* Without metadata, what was dequeued is enqueued, as an NF does that passes
		 * packets on. */
		rte_ring_enqueue_burst(ring, metadata ? elements + at : out, burst, NULL);
		uint32_t got = rte_ring_dequeue_burst(ring, out, burst, NULL);

		for (uint32_t i = 0; i < got; i++)
			sum += metadata ? read_metadata(out[i]) : (uintptr_t)out[i];
		at = at + 2 * burst <= elements_n ? at + burst : 0;
	}
	return sum;
}

void mr_ring_bench_produce(struct rte_ring *ring, void **elements, uint32_t elements_n,
			   uint32_t burst, uint64_t total, int metadata)
{
	uint32_t at = 0;

	for (uint64_t sent = 0; sent < total;) {
		uint32_t want = (uint32_t)RTE_MIN((uint64_t)burst, total - sent);

		for (uint32_t i = 0; i < want && metadata; i++)
			write_metadata(elements[at + i], sent + i);
		uint32_t done = 0;

		while (done < want) {
			uint32_t n = rte_ring_enqueue_burst(ring, elements + at + done, want - done, NULL);

			if (n == 0)
				rte_pause();
			done += n;
		}
		sent += want;
		at = at + 2 * burst <= elements_n ? at + burst : 0;
	}
}

uint64_t mr_ring_bench_consume(struct rte_ring *ring, uint32_t burst, uint64_t total,
			       int metadata)
{
	void *out[MR_MAX_BURST];
	uint64_t sum = 0;

	for (uint64_t seen = 0; seen < total;) {
		uint32_t n = rte_ring_dequeue_burst(ring, out, burst, NULL);

		if (n == 0)
			rte_pause();
		for (uint32_t i = 0; i < n; i++)
			sum += metadata ? read_metadata(out[i]) : (uintptr_t)out[i];
		seen += n;
	}
	return sum;
}

/* ---- rte_hash, for the benchmark ---- */

struct rte_hash *mr_hash_new(uint32_t entries, uint32_t key_bytes)
{
	static int made;
	char name[RTE_HASH_NAMESIZE];
	struct rte_hash_parameters parameters = {
		.name = name,
		.entries = entries,
		.key_len = key_bytes,
		.hash_func = rte_hash_crc,
		.socket_id = SOCKET_ID_ANY,
	};

	snprintf(name, sizeof(name), "mr_bench_%d", made++);
	return rte_hash_create(&parameters);
}

void mr_hash_delete(struct rte_hash *hash)
{
	rte_hash_free(hash);
}

int mr_hash_add(struct rte_hash *hash, const void *key, uint64_t data)
{
	return rte_hash_add_key_data(hash, key, (void *)(uintptr_t)data);
}

int mr_hash_del(struct rte_hash *hash, const void *key)
{
	int place = rte_hash_del_key(hash, key);

	return RTE_MIN(place, 0);
}

uint32_t mr_hash_of(struct rte_hash *hash, const void *key)
{
	return rte_hash_hash(hash, key);
}

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* since Linux 6.1 */
#endif

static int collapse_list(const struct rte_memseg_list *list, void *arg)
{
	const uintptr_t huge = 2 << 20;
	uintptr_t start = RTE_ALIGN_CEIL((uintptr_t)list->base_va, huge);
	uintptr_t end = RTE_ALIGN_FLOOR((uintptr_t)list->base_va + list->len, huge);

	(void)arg;
	/* Page by page: one that cannot be had must not keep the others from it. */
	for (uintptr_t at = start; at < end; at += huge)
		(void)madvise((void *)at, huge, MADV_COLLAPSE);
	return 0;
}

void mr_memory_collapse(void)
{
	rte_memseg_list_walk(collapse_list, NULL);
}

uint64_t mr_hash_bench_lookup(struct rte_hash *hash, const void *keys, const uint32_t *hashes,
			      uint32_t key_bytes, uint64_t count, uint32_t burst)
{
	const void *of_burst[MR_MAX_BURST];
	uint32_t copied[MR_MAX_BURST];
	void *data[MR_MAX_BURST];
	uint64_t sum = 0;

	for (uint64_t at = 0; at + burst <= count; at += burst) {
		uint64_t found = 0;

		for (uint32_t i = 0; i < burst; i++)
			of_burst[i] = RTE_PTR_ADD(keys, (at + i) * key_bytes);
		if (hashes != NULL) {
			memcpy(copied, hashes + at, burst * sizeof(copied[0]));
			rte_hash_lookup_with_hash_bulk_data(hash, of_burst, copied, burst, &found, data);
		} else {
			rte_hash_lookup_bulk_data(hash, of_burst, burst, &found, data);
		}
		for (uint32_t i = 0; i < burst; i++)
			sum += found >> i & 1 ? (uintptr_t)data[i] : 0;
	}
	return sum;
}
