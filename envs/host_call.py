"""Calls Python from compiled code, on a CPU without giving up JAX's persistent compilation cache.

JAX caches no program that contains one of its own callbacks, so a training with native physics would compile anew at
every start; and such a callback costs about a quarter of a millisecond each time. XLA's foreign function interface has
neither fault: a program holds just the name of its target. The structures below are those of the header
`xla/ffi/api/c_api.h` that jaxlib ships (`jax.ffi.include_dir()`). With another version of it, and on an accelerator,
JAX's callback does the work.
"""

import ctypes
import warnings
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p

import jax
import jax.numpy as jnp
import numpy as np

_VERSIONS = ((0, 3), (0, 4), (0, 5))  # major and minor version of that header, jaxlib 0.10 to 0.12
_EXTENSION_METADATA = 1
_ERROR_INTERNAL = 13
_FLOAT32 = 11


def _struct(name: str, **fields) -> type[Structure]:
    """A structure of the header, whose first field is always its size."""
    return type(name, (Structure,), {"_fields_": [("struct_size", c_size_t), *fields.items()]})


_Extension = _struct("_Extension", type=c_int, next=c_void_p)
_Version = _struct("_Version", extension=c_void_p, major=c_int, minor=c_int)
_Metadata = _struct("_Metadata", api_version=_Version, traits=c_uint32)
_ErrorArgs = _struct("_ErrorArgs", extension=c_void_p, message=c_char_p, code=c_int)
_CreateError = CFUNCTYPE(c_void_p, POINTER(_ErrorArgs))
_Api = _struct("_Api", extension=c_void_p, api_version=_Version, internal_api=c_void_p, create_error=_CreateError)
_Buffer = _struct("_Buffer", extension=c_void_p, dtype=c_int, data=c_void_p, rank=c_int64, dims=POINTER(c_int64))
_Buffers = _struct(  # of the arguments, and of the results
    "_Buffers", extension=c_void_p, size=c_int64, types=c_void_p, buffers=POINTER(POINTER(_Buffer))
)


class _MetadataExtension(Structure):
    _fields_ = [("base", _Extension), ("metadata", POINTER(_Metadata))]


_CallFrame = _struct(
    "_CallFrame",
    extension=POINTER(_MetadataExtension),
    api=POINTER(_Api),
    context=c_void_p,
    stage=c_int,
    args=_Buffers,
    results=_Buffers,
)
_Handler = CFUNCTYPE(c_void_p, POINTER(_CallFrame))

_functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
_handlers: dict[str, _Handler] = {}  # XLA holds bare pointers to these: they must never be collected
_refused: set[str] = set()


def _as_array(buffers: _Buffers) -> np.ndarray:
    """The only buffer, float32, as an array that shares its memory."""
    buffer = buffers.buffers[0].contents
    if buffers.size != 1 or buffer.dtype != _FLOAT32:
        raise TypeError("expected one float32 array")
    shape = tuple(buffer.dims[: buffer.rank])
    memory = (ctypes.c_float * int(np.prod(shape))).from_address(buffer.data)
    return np.frombuffer(memory, np.float32).reshape(shape)


def _make_handler(name: str) -> _Handler:
    def handler(frame_pointer):
        frame = frame_pointer.contents
        try:
            if frame.extension and frame.extension.contents.base.type == _EXTENSION_METADATA:
                # XLA asks at registration which version of the interface this is.
                version = frame.extension.contents.metadata.contents.api_version
                theirs = frame.api.contents.api_version
                if (theirs.major, theirs.minor) not in _VERSIONS:
                    raise NotImplementedError(f"version {theirs.major}.{theirs.minor} of XLA's interface")
                version.major, version.minor = theirs.major, theirs.minor
            else:
                result, expected = _functions[name](_as_array(frame.args)), _as_array(frame.results)
                if result.shape != expected.shape:
                    raise ValueError(f"the function returned shape {result.shape} instead of {expected.shape}")
                expected[...] = result
        except BaseException as error:  # nothing may be raised through C: it becomes XLA's error, and Python's again
            args = _ErrorArgs(
                struct_size=ctypes.sizeof(_ErrorArgs),
                message=f"{type(error).__name__}: {error}".encode(),
                code=_ERROR_INTERNAL,
            )
            return frame.api.contents.create_error(ctypes.byref(args))
        return None

    return _Handler(handler)


def _register(name: str, function: Callable) -> bool:
    """Makes `function` the target `name` of XLA's interface; False if XLA's is of a version unknown here."""
    _functions[name] = function
    if name not in _handlers:
        _handlers[name] = _make_handler(name)
        try:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(_handlers[name]), platform="cpu")
        except jax.errors.JaxRuntimeError as error:
            _refused.add(name)
            warnings.warn(f"programs with native MuJoCo compile anew at each start: {error}", stacklevel=2)
    return name not in _refused


def host_call(
    name: str, function: Callable[[np.ndarray], np.ndarray], result_shape: tuple[int, ...], x: jax.Array
) -> jax.Array:
    """`function(x)` on the host, from within compiled code.

    Args:
      name: cached programs know the function by its name, so it must mean the same in every process. Two functions of
        one name: the newer is called.
      function: takes a float32 array, valid during the call only, and returns one; a vmap hands it all of its batch at
        once, as leading axes.
      result_shape: shape of the result for one unbatched `x`.
      x: float32 array.

    Whether for a CPU or an accelerator is decided when it is traced, by JAX's default backend.
    """
    result = jax.ShapeDtypeStruct(result_shape, jnp.float32)
    if jax.default_backend() != "cpu" or not _register(name, function):
        return jax.pure_callback(function, result, x, vmap_method="broadcast_all")
    return jax.ffi.ffi_call(name, result, vmap_method="broadcast_all")(x)
