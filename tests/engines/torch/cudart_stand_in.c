/* What cuda_ipc.py calls of libcudart, on shared memory of the host: handles are names, copies are done at once. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct { char reserved[64]; } cudaIpcMemHandle_t;
enum { SUCCESS = 0, OUT_OF_MEMORY = 2, INVALID_HANDLE = 400, MOST = 64 };
static struct { void *address; size_t nbytes; char name[64]; } known[MOST];
static int last_error = SUCCESS;

static int fail(int code) { return last_error = code; }

int cudaGetLastError(void) { int code = last_error; last_error = SUCCESS; return code; }

const char *cudaGetErrorString(int code) { return code == OUT_OF_MEMORY ? "out of memory" : "invalid resource handle"; }

static int find(void *address) {
    for (int i = 0; i < MOST; i++) if (known[i].address == address) return i;
    return -1;
}

static int map(void **place, size_t nbytes, const char *name, int flags) {
    int file = shm_open(name, flags, 0600), i = find(NULL);
    struct stat found;
    if (file < 0 || i < 0 || (nbytes && ftruncate(file, nbytes)) || fstat(file, &found)) return fail(INVALID_HANDLE);
    *place = mmap(NULL, found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    known[i].address = *place; known[i].nbytes = found.st_size;
    snprintf(known[i].name, sizeof known[i].name, "%s", name);
    return SUCCESS;
}

int cudaMalloc(void **place, size_t nbytes) {
    static int number;
    char name[64];
    if (nbytes > (1ul << 40)) return fail(OUT_OF_MEMORY);
    snprintf(name, sizeof name, "/cudart-stand-in-%d-%d", getpid(), number++);
    return map(place, nbytes, name, O_RDWR | O_CREAT | O_EXCL);
}

static int unmap(void *address, int forget) {
    int i = find(address);
    if (!address || i < 0) return fail(INVALID_HANDLE);
    munmap(address, known[i].nbytes);
    if (forget) shm_unlink(known[i].name);
    known[i].address = NULL;
    return SUCCESS;
}

int cudaFree(void *address) { return unmap(address, 1); }

int cudaIpcCloseMemHandle(void *address) { return unmap(address, 0); }

int cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *address) {
    int i = find(address);
    if (i < 0) return fail(INVALID_HANDLE);
    memset(handle, 0, sizeof *handle);
    /* The last byte, too: all 64 of them have to arrive. */
    strcpy(handle->reserved, known[i].name);
    handle->reserved[63] = '!';
    return SUCCESS;
}

int cudaIpcOpenMemHandle(void **place, cudaIpcMemHandle_t handle, unsigned int flags) {
    if (flags != 1 || handle.reserved[63] != '!') return fail(INVALID_HANDLE);
    return map(place, 0, handle.reserved, O_RDWR);
}

int cudaMemcpyAsync(void *target, const void *source, size_t nbytes, int kind, void *stream) {
    if (kind != 4 || stream != (void *)7) return fail(INVALID_HANDLE);
    memcpy(target, source, nbytes);
    return SUCCESS;
}
