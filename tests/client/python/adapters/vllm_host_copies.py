"""vLLM's offloading with tiers where the engine itself runs on the CPU, which its release refuses: all of it is vLLM's
own, but the worker that copies between the engine's cache and the tiers'."""

from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class HostWorker(OffloadingWorker):
    """Of a model with one group of caches. Copies are over when they return."""

    def __init__(self, kv_caches, blocks_per_chunk, region):
        self._blocks = blocks_per_chunk
        self._region = region
        self._finished = []
        (group,) = kv_caches.group_data_refs
        self._layers = []  # (blocks, chunks), [number, bytes] each
        for ref in group:
            described = kv_caches.tensors[ref.tensor_idx]
            blocks = described.tensor.view(-1, described.page_size_bytes)
            self._layers.append((blocks, region.create_next_worker_view(blocks_per_chunk * blocks.shape[1])))

    def _pairs(self, blocks, chunks):
        """Views of each block's page and of its place in a chunk; the first chunk may be needed from its middle on."""
        (first,) = blocks.block_indices
        for number, block in enumerate(blocks.block_ids.tolist()):
            row, part = divmod(first % self._blocks + number, self._blocks)
            for pages, rows in self._layers:
                size = pages.shape[1]
                yield pages[block], rows[chunks.block_ids[row]][part * size : (part + 1) * size]

    def submit_store(self, job_id, src_spec, dst_spec):
        for page, kept in self._pairs(src_spec, dst_spec):
            kept.copy_(page)
        self._finished.append(TransferResult(job_id, success=True))
        return True

    def submit_load(self, job_id, src_spec, dst_spec):
        for page, kept in self._pairs(dst_spec, src_spec):
            page.copy_(kept)
        self._finished.append(TransferResult(job_id, success=True))
        return True

    def get_finished(self):
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids):
        pass

    def shutdown(self):
        self._layers.clear()
        self._region.cleanup()


class HostTieringSpec(TieringOffloadingSpec):
    def get_worker(self, kv_caches):
        region = SharedOffloadRegion(
            engine_id=self.config.engine_id, num_chunks=self.num_chunks, rank=0,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk, cpu_page_size=self.cpu_page_size_per_worker)
        return HostWorker(kv_caches, self.blocks_per_chunk, region)
