import java.io.File;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.apache.iceberg.*;
import org.apache.iceberg.expressions.Expressions;
import org.apache.iceberg.hadoop.HadoopTables;
import org.apache.iceberg.types.Types;
import static org.apache.iceberg.types.Types.NestedField.*;

/** Makes a table with Iceberg's own library; the data files are there (make.py). */
public class Make {
    static final String TABLE = "file:/frazil-java/main/orders";

    static long size(String file) {
        return new File("/frazil-java/main/orders/data/" + file).length();
    }

    static DataFile data(PartitionSpec spec, String file, long rows, String partition) {
        DataFiles.Builder made = DataFiles.builder(spec).withPath(TABLE + "/data/" + file)
            .withFormat(FileFormat.PARQUET).withFileSizeInBytes(size(file)).withRecordCount(rows);
        return (partition == null ? made : made.withPartitionPath(partition)).build();
    }

    public static void main(String[] args) {
        Schema schema = new Schema(
            required(1, "id", Types.IntegerType.get()),
            optional(2, "name", Types.StringType.get()),
            optional(3, "price", Types.DecimalType.of(9, 2)),
            optional(4, "at", Types.TimestampType.withZone()),
            optional(5, "tags", Types.ListType.ofOptional(7, Types.StringType.get())),
            optional(6, "place", Types.StructType.of(
                optional(8, "lat", Types.FloatType.get()), optional(9, "town", Types.StringType.get()))));
        HadoopTables tables = new HadoopTables(new Configuration());
        Table table = tables.create(schema, PartitionSpec.unpartitioned(), Map.of(
            "format-version", "2",
            "write.metadata.compression-codec", "gzip",
            "write.metadata.delete-after-commit.enabled", "true",
            "write.metadata.previous-versions-max", "1"), TABLE);
        System.out.println(table.schema());
        table.newAppend().appendFile(data(table.spec(), "old.parquet", 4, null)).commit();
        table.manageSnapshots().createTag("first", table.currentSnapshot().snapshotId()).commit();
        table.updateSchema()
            .updateColumn("id", Types.LongType.get())
            .updateColumn("price", Types.DecimalType.of(12, 2))
            .updateColumn("place.lat", Types.DoubleType.get())
            .renameColumn("name", "title").moveFirst("place.town").renameColumn("place.town", "city")
            .addColumn("note", Types.StringType.get()).addColumn("place", "zip", Types.StringType.get())
            .commit();
        table.updateSpec().addField("title_trunc", Expressions.truncate("title", 1)).commit();
        System.out.println(table.schema());
        PartitionSpec spec = table.spec();
        table.newAppend().appendFile(data(spec, "new-e.parquet", 2, "title_trunc=e"))
            .appendFile(data(spec, "new-f.parquet", 2, "title_trunc=f")).commit();
        PartitionSpec none = table.specs().get(0);
        DeleteFile positions = FileMetadata.deleteFileBuilder(none).ofPositionDeletes()
            .withPath(TABLE + "/data/positions.parquet").withFormat(FileFormat.PARQUET)
            .withFileSizeInBytes(size("positions.parquet")).withRecordCount(1).build();
        DeleteFile equality = FileMetadata.deleteFileBuilder(spec).ofEqualityDeletes(1)
            .withPath(TABLE + "/data/equality.parquet").withFormat(FileFormat.PARQUET)
            .withPartitionPath("title_trunc=f")
            .withFileSizeInBytes(size("equality.parquet")).withRecordCount(2).build();
        table.newRowDelta().addDeletes(positions).addDeletes(equality).commit();
    }
}
