/* Preloaded into a process that writes a log: it notes every call that changes a file of one folder,
 * with its bytes and in its order, and lets such calls fail on demand.
 *
 *   FAULTS_FOLDER  the folder (absolute path); calls on other files pass unseen
 *   FAULTS_TRACE   where to note them; nothing is noted when unset
 *
 * A note is a head of five numbers, little endian and packed (see trace.py), then its bytes. Writes are
 * made and noted under one lock, so that notes have the order of what happened. Syncs are noted when
 * they begin and when they have ended, and run without the lock: writes of other threads fall between.
 *
 * `faults_arm` is called by the process itself, through ctypes, to let calls fail from now on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { OPENED = 1, CLOSED, WRITTEN, TRUNCATED, SYNCING, SYNCED, UNLINKED, RENAMED, LINKED };
enum { ON_WRITE = 1, ON_SYNC = 2, ON_TRUNCATE = 4, ON_OPEN = 8 };
enum { FILES = 4096 };

struct __attribute__((packed)) note {
  uint8_t what;
  int32_t file;
  int64_t offset;
  int64_t extra;
  uint32_t length;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX];
static size_t folder_length;
static int trace = -1;
static char seen[FILES];
static int armed_on, armed_error, armed_short;
static long armed_skip, armed_times, armed_hits;

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static int (*real_ftruncate)(int, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_unlink)(const char *);
static int (*real_rename)(const char *, const char *);
static int (*real_link)(const char *, const char *);

__attribute__((constructor)) static void begin(void) {
  const char *where = getenv("FAULTS_FOLDER"), *to = getenv("FAULTS_TRACE");
  real_open = dlsym(RTLD_NEXT, "open64");
  real_openat = dlsym(RTLD_NEXT, "openat64");
  real_close = dlsym(RTLD_NEXT, "close");
  real_write = dlsym(RTLD_NEXT, "write");
  real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
  real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  real_unlink = dlsym(RTLD_NEXT, "unlink");
  real_rename = dlsym(RTLD_NEXT, "rename");
  real_link = dlsym(RTLD_NEXT, "link");
  if (where != NULL && strlen(where) < sizeof folder) {
    strcpy(folder, where);
    folder_length = strlen(folder);
  }
  if (to != NULL) trace = real_open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int inside(const char *path) {
  return folder_length && strncmp(path, folder, folder_length) == 0 &&
         (path[folder_length] == '/' || path[folder_length] == 0);
}

static int known(int file) { return file >= 0 && file < FILES && seen[file]; }

static void put(const void *bytes, size_t length) {
  const char *at = bytes;
  while (length > 0) {
    ssize_t done = real_write(trace, at, length);
    if (done <= 0) abort();
    at += done;
    length -= (size_t)done;
  }
}

static void note(int what, int file, int64_t offset, int64_t extra, const void *bytes, size_t length) {
  struct note head = {(uint8_t)what, file, offset, extra, (uint32_t)length};
  int before = errno;
  if (trace < 0) return;
  put(&head, sizeof head);
  put(bytes, length);
  errno = before;
}

/* Called with the lock held. */
static int fails(int on) {
  if (!(armed_on & on) || armed_times == 0) return 0;
  if (armed_skip > 0) {
    armed_skip--;
    return 0;
  }
  armed_hits++;
  if (armed_times > 0) armed_times--;
  errno = armed_error;
  return 1;
}

/* Let calls of these kinds fail with this error after `skip` more, `times` times (-1: for ever). The
 * first write that fails writes half of its bytes when `half` is set, as a disk does that fills up. */
void faults_arm(int on, int error, long skip, long times, int half) {
  pthread_mutex_lock(&lock);
  armed_on = on;
  armed_error = error;
  armed_skip = skip;
  armed_times = times;
  armed_short = half;
  armed_hits = 0;
  pthread_mutex_unlock(&lock);
}

long faults_hits(void) {
  pthread_mutex_lock(&lock);
  long hits = armed_hits;
  pthread_mutex_unlock(&lock);
  return hits;
}

static int opened(int file, const char *path, int flags, int existed) {
  if (file >= 0 && file < FILES) {
    seen[file] = 1;
    note(OPENED, file, existed, flags, path, strlen(path));
  }
  return file;
}

static int open_it(int at, const char *path, int flags, mode_t mode) {
  struct stat status;
  int file, existed;
  if (!inside(path)) return at == AT_FDCWD ? real_open(path, flags, mode) : real_openat(at, path, flags, mode);
  pthread_mutex_lock(&lock);
  existed = stat(path, &status) == 0;
  if (!(flags & O_DIRECTORY) && fails(ON_OPEN)) {
    pthread_mutex_unlock(&lock);
    return -1;
  }
  file = opened(real_openat(at, path, flags, mode), path, flags, existed);
  pthread_mutex_unlock(&lock);
  return file;
}

#define MODE_OF(flags, mode)                        \
  if ((flags) & (O_CREAT | __O_TMPFILE)) {          \
    va_list rest;                                   \
    va_start(rest, flags);                          \
    mode = va_arg(rest, mode_t);                    \
    va_end(rest);                                   \
  }

int open(const char *path, int flags, ...) {
  mode_t mode = 0;
  MODE_OF(flags, mode)
  return open_it(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  mode_t mode = 0;
  MODE_OF(flags, mode)
  return open_it(AT_FDCWD, path, flags, mode);
}

int openat(int at, const char *path, int flags, ...) {
  mode_t mode = 0;
  MODE_OF(flags, mode)
  return open_it(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
  mode_t mode = 0;
  MODE_OF(flags, mode)
  return open_it(at, path, flags, mode);
}

int close(int file) {
  int result;
  if (!known(file)) return real_close(file);
  pthread_mutex_lock(&lock);
  seen[file] = 0;
  note(CLOSED, file, 0, 0, "", 0);
  result = real_close(file);
  pthread_mutex_unlock(&lock);
  return result;
}

static ssize_t write_it(int file, const void *bytes, size_t length, off64_t offset) {
  ssize_t done;
  pthread_mutex_lock(&lock);
  if (fails(ON_WRITE)) {
    if (!armed_short || length < 2) {
      pthread_mutex_unlock(&lock);
      return -1;
    }
    armed_short = 0;
    length /= 2;
  }
  if (offset >= 0) {
    done = real_pwrite(file, bytes, length, offset);
  } else {
    done = real_write(file, bytes, length);
    offset = lseek(file, 0, SEEK_CUR) - (done > 0 ? done : 0);
  }
  if (done > 0) note(WRITTEN, file, offset, 0, bytes, (size_t)done);
  pthread_mutex_unlock(&lock);
  return done;
}

ssize_t write(int file, const void *bytes, size_t length) {
  if (!known(file)) return real_write(file, bytes, length);
  return write_it(file, bytes, length, -1);
}

ssize_t pwrite(int file, const void *bytes, size_t length, off_t offset) {
  if (!known(file)) return real_pwrite(file, bytes, length, offset);
  return write_it(file, bytes, length, offset);
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t offset) {
  if (!known(file)) return real_pwrite(file, bytes, length, offset);
  return write_it(file, bytes, length, offset);
}

static int truncate_it(int file, off64_t size) {
  int result = -1;
  pthread_mutex_lock(&lock);
  if (!fails(ON_TRUNCATE)) {
    result = real_ftruncate(file, size);
    if (result == 0) note(TRUNCATED, file, size, 0, "", 0);
  }
  pthread_mutex_unlock(&lock);
  return result;
}

int ftruncate(int file, off_t size) { return known(file) ? truncate_it(file, size) : real_ftruncate(file, size); }

int ftruncate64(int file, off64_t size) { return known(file) ? truncate_it(file, size) : real_ftruncate(file, size); }

static int sync_it(int file, int (*real)(int)) {
  int result, failing;
  if (!known(file)) return real(file);
  pthread_mutex_lock(&lock);
  note(SYNCING, file, 0, 0, "", 0);
  failing = fails(ON_SYNC);
  pthread_mutex_unlock(&lock);
  if (failing) return -1;
  result = real(file);
  pthread_mutex_lock(&lock);
  if (result == 0) note(SYNCED, file, 0, 0, "", 0);
  pthread_mutex_unlock(&lock);
  return result;
}

int fsync(int file) { return sync_it(file, real_fsync); }

int fdatasync(int file) { return sync_it(file, real_fdatasync); }

int unlink(const char *path) {
  int result;
  if (!inside(path)) return real_unlink(path);
  pthread_mutex_lock(&lock);
  result = real_unlink(path);
  if (result == 0) note(UNLINKED, -1, 0, 0, path, strlen(path));
  pthread_mutex_unlock(&lock);
  return result;
}

static int name_it(int what, int (*real)(const char *, const char *), const char *from, const char *to) {
  char both[2 * PATH_MAX];
  int result;
  if (!inside(from) && !inside(to)) return real(from, to);
  pthread_mutex_lock(&lock);
  result = real(from, to);
  if (result == 0 && strlen(from) + strlen(to) + 1 < sizeof both) {
    strcpy(both, from);
    strcpy(both + strlen(from) + 1, to);
    note(what, -1, 0, 0, both, strlen(from) + 1 + strlen(to));
  }
  pthread_mutex_unlock(&lock);
  return result;
}

int rename(const char *from, const char *to) { return name_it(RENAMED, real_rename, from, to); }

int link(const char *from, const char *to) { return name_it(LINKED, real_link, from, to); }
