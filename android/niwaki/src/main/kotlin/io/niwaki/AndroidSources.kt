package io.niwaki

import android.content.ContentResolver
import android.content.res.AssetFileDescriptor
import android.net.Uri
import java.io.FileNotFoundException

/**
 * Opens a bundle that lies uncompressed in the app package: `context.assets.openFd("model.niwaki")`. The build must
 * not compress it: `androidResources { noCompress += "niwaki" }`. [asset] may be closed afterwards.
 *
 * @throws NiwakiException
 */
public suspend fun Engine.Companion.open(asset: AssetFileDescriptor, options: OpenOptions = OpenOptions()): Engine =
    open(asset.fd, asset.startOffset, asset.knownLength, options)

/**
 * Opens a bundle that another app provides, such as a document that the user picked.
 *
 * @throws NiwakiException
 */
public suspend fun Engine.Companion.open(
    resolver: ContentResolver,
    uri: Uri,
    options: OpenOptions = OpenOptions(),
): Engine = resolver.openBundle(uri) { open(it, options) }

/**
 * States what opening a bundle in the app package would take, without reading its weights.
 *
 * @throws NiwakiException
 */
public suspend fun Engine.Companion.plan(asset: AssetFileDescriptor, options: OpenOptions = OpenOptions()): MemoryPlan =
    plan(asset.fd, asset.startOffset, asset.knownLength, options)

/**
 * States what opening a bundle that another app provides would take, without reading its weights.
 *
 * @throws NiwakiException
 */
public suspend fun Engine.Companion.plan(
    resolver: ContentResolver,
    uri: Uri,
    options: OpenOptions = OpenOptions(),
): MemoryPlan = resolver.openBundle(uri) { plan(it, options) }

private val AssetFileDescriptor.fd: Int
    get() = try {
        parcelFileDescriptor.fd
    } catch (e: IllegalStateException) {
        throw NiwakiException.FileUnreadable("the asset was closed", e)
    }

private val AssetFileDescriptor.knownLength: Long?
    get() = declaredLength.takeIf { it != AssetFileDescriptor.UNKNOWN_LENGTH }

private suspend fun <R> ContentResolver.openBundle(uri: Uri, use: suspend (AssetFileDescriptor) -> R): R {
    val file = offMain {
        try {
            openAssetFileDescriptor(uri, "r")
        } catch (e: FileNotFoundException) {
            throw NiwakiException.FileNotFound("the document cannot be opened", e)
        } catch (e: SecurityException) {
            throw NiwakiException.FileUnreadable("the app may not read the document", e)
        } catch (e: RuntimeException) {
            // Whatever another app's provider threw.
            throw NiwakiException.FileUnreadable("the document's provider failed", e)
        } ?: throw NiwakiException.FileUnreadable("the document's provider does not answer", null)
    }
    return file.use { use(it) }
}
